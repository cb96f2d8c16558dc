"""A small voice-cloning trainer in the shape of GPT-SoVITS, with faults one can switch on."""
