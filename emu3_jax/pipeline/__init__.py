"""Public commands in order, each resumable: what the quickstart and post-training share."""
