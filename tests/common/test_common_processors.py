"""ProcessorTesterMixin and the mixins of feature extractors, over WavLinkProcessor and the feature extractors."""

import unittest

import numpy as np

from processing import (
    WavLinkClapFeatureExtractor,
    WavLinkFeatureExtractor,
    WavLinkPasstFeatureExtractor,
    WavLinkProcessor,
)

from ..conftest import RATE, word_level_tokenizer
from .sources import load

processing_common = load("test_processing_common")
SavingTests = load("test_feature_extraction_common").FeatureExtractionSavingTestMixin
SequenceTests = load("test_sequence_feature_extraction_common").SequenceFeatureExtractionTestMixin

# transformers' own tests name no rate, which its extractors then guess and ours asks for.
processing_common.MODALITY_TEST_SPECS["audio"]["call_time_kwargs"]["sampling_rate"] = RATE


class Clips:
    """Sounds for SequenceFeatureExtractionTestMixin, in rising length."""

    batch_size, min_seq_length, max_seq_length, feature_size = 7, 400, 2000, 10
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def __init__(self, **fields):
        self.fields = fields

    def prepare_feat_extract_dict(self):
        return self.fields

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        generator = np.random.default_rng(0)
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        sizes = [self.max_seq_length] * self.batch_size if equal_length else list(lengths)[: self.batch_size]
        clips = [generator.random((size, self.feature_size)) for size in sizes]
        return clips if numpify else [clip.tolist() for clip in clips]


class WavLinkFeatureExtractorTest(SequenceTests, unittest.TestCase):
    feature_extraction_class = WavLinkFeatureExtractor
    feat_extract_tester = Clips(feature_size=10, sampling_rate=RATE, padding_value=0.0, padding="longest")


class WavLinkClapFeatureExtractorTest(SavingTests, unittest.TestCase):
    feature_extraction_class = WavLinkClapFeatureExtractor
    feat_extract_dict = {"feature_size": 32, "sampling_rate": 48000, "chunk_length": 20}


class WavLinkPasstFeatureExtractorTest(SavingTests, unittest.TestCase):
    feature_extraction_class = WavLinkPasstFeatureExtractor
    feat_extract_dict = {"feature_size": 64, "sampling_rate": 32000, "window_frames": 500}


class WavLinkProcessorTest(processing_common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = WavLinkProcessor
    # The test tokenizer has the words of this project's captions and pads to at most 32.
    audio_text_kwargs_max_length, audio_unstructured_max_length, audio_processor_tester_max_length = 24, 20, 22

    @classmethod
    def _setup_feature_extractor(cls):
        return WavLinkFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        return word_level_tokenizer("[CLS]", "[SEP]", "[PAD]")

    def prepare_audio_inputs(self, batch_size=None):
        return [{"array": clip, "sampling_rate": RATE} for clip in super().prepare_audio_inputs(batch_size)]
