"""From files to token ids: reading, recognising formats, rendering templates, tokenizing, splitting.

This package knows nothing of models and clients; callers pass the tokenizer.
"""
