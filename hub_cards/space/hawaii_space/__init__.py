"""
The code of a Space, which runs without the package: it imports the standard library, Gradio, torch, transformers and
Pillow, and relatively itself.
"""
