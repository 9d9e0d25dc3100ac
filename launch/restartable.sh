#!/usr/bin/env bash
# Runs a command, and ends with 143 if it was told to end by SIGTERM. Training then saves and ends well,
# which a JobSet would take for the end of the whole run; 143 makes it start again.
#
#   bash launch/restartable.sh COMMAND ...

told=0
trap 'told=143; kill -TERM $! 2>/dev/null' TERM
"$@" &
[[ "$told" == 0 ]] || kill -TERM $! # it came before there was a command to pass it on to
wait $!
code=$?
if [[ "$told" != 0 ]]; then # the signal ended `wait`, not the command
    wait $!
    code=$told
fi
exit "$code"
