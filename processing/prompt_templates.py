"""Prompts for labels of sounds, among which `wavlink prompts` searches for those that suit a model.

They vary what zero-shot practice varies (CLIP, arXiv 2103.00020, section 3.1.4): the bare label, an article, a verb,
the medium, the distance and the quality of the recording, and the sentences of captions.
"""

TEMPLATES = (
    "This is a sound of {}.",
    "{}",
    "{}.",
    "the sound of {}",
    "a sound of {}",
    "sounds of {}",
    "a recording of {}",
    "an audio clip of {}",
    "a field recording of {}",
    "a short recording of {}",
    "a clean recording of {}",
    "a noisy recording of {}",
    "a close recording of {}",
    "a distant recording of {}",
    "a loud {}",
    "a quiet {}",
    "a sound effect of {}",
    "a sample of {}",
    "the noise of {}",
    "the noise that {} makes",
    "{} can be heard",
    "{} is heard in the background",
    "one can hear {}",
    "someone records {}",
    "there is {} in this recording",
    "this clip contains {}",
    "listen to {}",
    "{}, followed by silence",
    "{} outdoors",
    "{} in a room",
)
