#!/usr/bin/env bash
# The models of the emoji in four styles, some seven hours on two cores: corpus -> vision tokenizer -> tokens ->
# transformer -> tuning on captions, chats, edits and clips, three times -> held-out figures of both.
#
#   bash launch/train_styles.sh [--dry_run] [FOLDER]        # FOLDER: runs/styles
#
# Ctrl-C at any point: the same command continues at the last checkpoint. --dry_run prints the commands.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
cd "$ROOT"
if [[ "${1:-}" == --dry_run ]]; then
    DRY_RUN=1
    shift
fi
[[ $# -le 1 && "${1:-}" != -* ]] || fail "expected at most the folder of the runs, found $*"
here="${1:-runs/styles}"
[[ -n "$DRY_RUN" ]] || set_up requirements.txt
export JAX_NUM_CPU_DEVICES=2
# glibc keeps what XLA frees instead of giving it back after every step (docs/how_to/training.md).
export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1

emu3() {
    run "$PYTHON_BIN" -m "emu3_jax.$1" "${@:2}"
}

emu3 data.emoji_styles --output="$here/corpus"
emu3 data.emoji_documents --corpus="$here/corpus"
emu3 data.questions.emoji --corpus="$here/corpus"
emu3 train --config="styles/vision_tokenizer:$here" --workdir="$here/vision_tokenizer"
vision="$here/vision_tokenizer_export"
# In the type that is shipped: tokens belong to exactly these weights.
emu3 convert export --model="$here/vision_tokenizer" --output="$vision" --dtype=bfloat16
emu3 tokenize --config="styles/tokenize:$here"
emu3 train --config="styles/transformer:$here" --workdir="$here/transformer"
emu3 train --config="styles/tuned:$here" --workdir="$here/tuned"
emu3 train --config="styles/longer:$here" --workdir="$here/longer"
emu3 train --config="styles/refined:$here" --workdir="$here/refined"

emu3 evaluate --evaluators=reconstruction --vision_tokenizer="$vision" --data="$here/corpus" \
    --output="$here/evaluation/vision_tokenizer"
# Recall is among the images of one style and one split, hence each split alone.
model=(--model="$here/refined" --vision_tokenizer="$vision" --tokens="$here/tokens")
drawing=(--data="$here/corpus" --temperature=0.7 --top_k=200)
for split in validation_style validation_combination validation; do
    emu3 evaluate --evaluators=emoji_retrieval,emoji_captions,emoji_compositions,likelihood \
        "${model[@]}" "${drawing[@]}" --guidance=3 --splits="$split" --output="$here/evaluation/$split"
done
emu3 evaluate --evaluators=emoji_retrieval --model="$here/refined" --vision_tokenizer="$vision" \
    "${drawing[@]}" --guidance=3 --splits=validation_style_zh --output="$here/evaluation/validation_style_zh"
for split in validation_style validation_combination; do
    for guidance in 1 3; do
        emu3 evaluate --evaluators=emoji_edits --model="$here/refined" --vision_tokenizer="$vision" "${drawing[@]}" \
            --guidance="$guidance" --splits="$split" --output="$here/evaluation/${split}_edits_$guidance"
    done
    emu3 evaluate --evaluators=questions "${model[@]}" --splits="${split}_chats" --reference=train_chats \
        --output="$here/evaluation/${split}_chats"
done
