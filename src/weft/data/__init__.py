"""From files to token ids: reading, recognising formats, rendering templates, tokenizing, sharing out.

Knows nothing of models and clients; a tokenizer is handed in.
"""
