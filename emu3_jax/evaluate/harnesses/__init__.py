"""A model of this project inside the evaluation harnesses of others: one file per harness.

Each of these files imports its harness, on which this project does not depend; nothing else imports
them. `answering` is what they share.
"""
