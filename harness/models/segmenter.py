"""Segmenter: an encoder's tokens, a mask transformer with class tokens, masks as cosine similarities.

The head is that of MBS's released code (github.com/RoadoneP/ECCV2024_MBS, segm/model/decoder.py, after Strudel et
al., "Segmenter", ICCV 2021): class tokens in groups, the background alone in the first one, and a norm over the
classes whose gain and bias grow with them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from cispbench.harness.models.groups import Group
from cispbench.harness.models.interface import ClassGroup, Encoder, IncrementalModel
from cispbench.harness.models.output import Features, Output
from cispbench.harness.models.transformer import Block
from cispbench.harness.models.upsampling import upsample


class MaskNorm(nn.Module):
    """Normalise over the classes: (m - mean) / (std + 1e-5) with the unbiased deviation, gain and bias a class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.ParameterList()
        self.bias = nn.ParameterList()

    def grow(self, new_classes: int) -> None:
        """Add a group with gain 1 and bias 0."""
        self.weight.append(nn.Parameter(torch.ones(new_classes)))
        self.bias.append(nn.Parameter(torch.zeros(new_classes)))

    def forward(self, masks: Tensor) -> Tensor:
        """Take and return (B, n, C)."""
        mean = masks.mean(-1, keepdim=True)
        std = masks.std(-1, keepdim=True)
        return torch.cat(list(self.weight)) * (masks - mean) / (std + 1e-5) + torch.cat(list(self.bias))


class MaskTransformer(nn.Module):
    """The decoder: patch and class tokens attend to each other, then meet in a cosine similarity."""

    def __init__(self, *, encoder_width: int, width: int, layers: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.proj_dec = nn.Linear(encoder_width, width)
        rates = [drop_path * i / max(layers - 1, 1) for i in range(layers)]
        self.blocks = nn.ModuleList(Block(width, heads, drop_path=rate) for rate in rates)
        self.cls_emb = nn.ParameterList()
        self.proj_patch = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.proj_classes = nn.Parameter(width**-0.5 * torch.randn(width, width))
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_norm = MaskNorm()
        self.width = width
        nn.init.trunc_normal_(self.proj_dec.weight, std=0.02)
        nn.init.zeros_(self.proj_dec.bias)

    def grow(self, new_classes: int) -> None:
        """Add a group of class tokens."""
        token = torch.empty(1, new_classes, self.width)
        nn.init.trunc_normal_(token, std=0.02)
        self.cls_emb.append(nn.Parameter(token))
        self.mask_norm.grow(new_classes)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take (B, n, E); return masks (B, n, C), patch features (B, n, D) and class features (B, C, D)."""
        x = self.proj_dec(tokens)
        classes = torch.cat(list(self.cls_emb), dim=1).expand(x.shape[0], -1, -1)
        x = torch.cat([x, classes], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        patches = x[:, : tokens.shape[1]] @ self.proj_patch
        class_features = x[:, tokens.shape[1] :] @ self.proj_classes
        cosine = functional.normalize(patches, dim=-1) @ functional.normalize(class_features, dim=-1).transpose(1, 2)
        return self.mask_norm(cosine), patches, class_features


class Segmenter(IncrementalModel):
    """An encoder, whose map the decoder reads as tokens, and the decoder."""

    def __init__(self, encoder: Encoder, decoder: MaskTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def parts(self, group: Group) -> tuple[Group, ...]:
        """Return the group; of the first one the background becomes a part of its own."""
        if self.groups or group.extra or group.classes == 1:
            return (group,)
        # The released code keeps the background's token in a group of its own; checkpoints depend on it.
        return Group(1, role=group.role), Group(group.classes - 1, role=group.role)

    def add_group(self, group: Group) -> None:
        """Add class tokens, with their gains and biases."""
        self.decoder.grow(group.channels)

    def features(self, images: Tensor) -> Features:
        """Run the encoder: in the decoder the class tokens take part.

        Sides that the encoder's ``patch`` does not divide are padded on the right and below.
        """
        height, width = images.shape[-2:]
        patch = self.encoder.patch
        padded = functional.pad(images, (0, -width % patch, 0, -height % patch))
        encoded, stages = self.encoder(padded)
        return Features((height, width), encoded, stages, encoded)

    def from_features(self, features: Features, companions: Mapping[str, Tensor] | None = None) -> Output:
        """Compute masks on the token grid and, up-sampled bilinearly, at full size; what was padded is cut off."""
        encoded, (side_h, side_w), patch = features.encoded, features.size, self.encoder.patch
        height, width = encoded.shape[-2:]
        masks, patches, class_features = self.decoder(encoded.flatten(2).transpose(1, 2))
        maps = masks.transpose(1, 2).unflatten(2, (height, width))
        padded = (side_h + -side_h % patch, side_w + -side_w % patch)
        logits = upsample(maps, padded)
        decoded = patches.transpose(1, 2).unflatten(2, (height, width))
        return Output(
            logits=logits[..., :side_h, :side_w],
            masks=maps,
            heads=torch.split(maps, [group.channels for group in self.groups], 1),
            patches=patches,
            class_features=class_features,
            class_tokens=torch.cat(list(self.decoder.cls_emb), dim=1)[0],
            encoded=encoded,
            stages=(*features.stages, decoded),
        )

    def class_groups(self) -> list[ClassGroup]:
        """Tokens with the mask norm's biases and gains, group by group."""
        norm = self.decoder.mask_norm
        parameters = zip(self.decoder.cls_emb, norm.bias, norm.weight, self.groups, strict=True)
        return [ClassGroup(t, b, group.role, group.extra, others=(gain,)) for t, b, gain, group in parameters]

    def trunk(self) -> tuple[nn.Module, ...]:
        """The encoder alone."""
        return (self.encoder,)

    def sections(self) -> dict[str, nn.Module]:
        """Encoder and decoder; the class tokens belong to the decoder, as in the released code."""
        return {"encoder": self.encoder, "decoder": self.decoder}
