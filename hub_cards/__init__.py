"""The model card and the export and upload of published folders."""
