"""Tests of transformers that WavLink leaves out, each with its reason."""

MOST = 15

# (class, test) of this folder -> why.
_NO_TOKENS = "an audio tower has no token embeddings to resize"
_VIEWS = "ClapAudioModel gives copies of its hidden states, which no gradient passes; transformers skips it there too"
SKIPPED = {
    ("WavLinkAudioModelTest", "test_resize_tokens_embeddings"): _NO_TOKENS,
    ("WavLinkClapAudioModelTest", "test_resize_tokens_embeddings"): _NO_TOKENS,
    ("WavLinkPasstModelTest", "test_resize_tokens_embeddings"): _NO_TOKENS,
    ("WavLinkClapAudioModelTest", "test_retain_grad_hidden_states_attentions"): _VIEWS,
    ("WavLinkHtsatTest", "test_retain_grad_hidden_states_attentions"): _VIEWS,
}
