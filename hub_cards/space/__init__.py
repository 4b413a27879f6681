"""A demo of any WavLink: a Gradio app that runs here, and as a Space on the Hub."""
