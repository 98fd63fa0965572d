"""Stands in for torchaudio in an environment that `ftadvise env create --cpu` built; written by ftadvise, and empty.

LLaMA-Factory imports torchaudio whenever it starts, though only audio data use it, and PyPI's torchaudio needs
CUDA's libraries. Text trains with this; audio does not.
"""
