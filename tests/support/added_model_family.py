"""A classifier of a family that no library knows: patches by a convolution, mixed by their mean, classified."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class MeanMixerConfig(PreTrainedConfig):
    model_type = "mean_mixer"

    def __init__(
        self, hidden_size: int = 32, patch_size: int = 8, image_size: int = 16, num_channels: int = 3, **kwargs
    ):
        self.hidden_size, self.patch_size = hidden_size, patch_size
        self.image_size, self.num_channels = image_size, num_channels
        super().__init__(**kwargs)


class MeanMixerForImageClassification(PreTrainedModel):
    config_class = MeanMixerConfig
    base_model_prefix = "mixer"
    main_input_name = "pixel_values"

    def __init__(self, config: MeanMixerConfig):
        super().__init__(config)
        self.stem = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mix = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(module.weight.flatten(1))
            nn.init.zeros_(module.bias)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> ImageClassifierOutput:
        tokens = self.norm(self.stem(pixel_values).flatten(2).transpose(1, 2))
        means = tokens.mean(1, keepdim=True).expand_as(tokens)
        tokens = tokens + torch.tanh(self.mix(torch.cat([tokens, means], -1)))
        logits = self.head(tokens.mean(1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)


AutoConfig.register("mean_mixer", MeanMixerConfig)
AutoModelForImageClassification.register(MeanMixerConfig, MeanMixerForImageClassification)
