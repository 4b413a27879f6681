"""From a recipe to a model and its processor: pretrained towers, a WavLink to go on from, or small new towers."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoProcessor, PreTrainedTokenizerFast

from processing import WavLinkClapFeatureExtractor, WavLinkFeatureExtractor, WavLinkProcessor
from processing.data import captions_of

from .configuration_wavlink import WavLinkConfig
from .modeling_wavlink import WavLinkModel
from .recipes import Recipe


def build(recipe: Recipe, train_set, columns) -> tuple[WavLinkModel, WavLinkProcessor]:
    """The model in fp32 and the processor whose default padding is the recipe's."""
    if recipe.init:
        model = AutoModel.from_pretrained(recipe.init, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(recipe.init, trust_remote_code=True)
        processor.feature_extractor.padding = recipe.padding
        return model, processor
    fields = {"loss_type": recipe.loss_type}
    if recipe.projection_dim:
        fields["projection_dim"] = recipe.projection_dim
    if recipe.matryoshka_dims:
        fields["matryoshka_dims"] = recipe.matryoshka_dims
    if recipe.audio_model and recipe.text_model:
        towers = recipe.audio_model, recipe.text_model
        processor = WavLinkProcessor.from_audio_text_pretrained(*towers, padding=recipe.padding)
        model = WavLinkModel.from_audio_text_pretrained(*towers, **fields)
    else:
        captions = (text for row in train_set.remove_columns("audio") for text in captions_of(row, columns))
        tokenizer = word_tokenizer(captions, recipe.text_config["max_position_embeddings"])
        mel_bins = recipe.audio_config["num_mel_bins"]
        htsat = recipe.audio_config.get("model_type") == "clap_audio_model"
        extractor = WavLinkClapFeatureExtractor if htsat else WavLinkFeatureExtractor
        processor = WavLinkProcessor(extractor(mel_bins, padding=recipe.padding), tokenizer)
        text_config = {**recipe.text_config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        config = WavLinkConfig(recipe.audio_config, text_config, text_pooling="mean", **fields)
        model = WavLinkModel(config)
    model.set_attn_implementation(recipe.attn_implementation)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, processor


def word_tokenizer(captions, max_length: int) -> PreTrainedTokenizerFast:
    """Lower-cased words and punctuation marks, one id each: enough for a text tower trained from scratch."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(captions, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
