"""Published encoders: load, use, export, describe. The only importer of huggingface_hub."""
