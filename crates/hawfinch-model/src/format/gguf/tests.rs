//! GGUF reading of small hand-made files.
