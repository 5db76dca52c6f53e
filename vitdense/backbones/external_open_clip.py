"""Image towers of open_clip's models, under names `open_clip/<model>`."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitdense.backbones.external import Converted, ExternalBackbone, ExternalConfig, Statistics
from vitdense.backbones.external_timm import TimmBackbone, create_timm, published_by_timm
from vitdense.backbones.probing import first_line
from vitdense.contracts import BACKBONES
from vitdense.errors import UserError
from vitdense.layers.position import resize_positions


@BACKBONES.register_family("open_clip")
class OpenClipConfig(ExternalConfig):
    """`architecture` is open_clip's name of a model, such as ViT-B-16, RN50-quickgelu or ViT-B-16-SigLIP."""

    library: ClassVar[str] = "open_clip"

    @classmethod
    def listed(cls) -> list[str]:
        """All of open_clip's models."""
        import open_clip

        return [f"open_clip/{name}" for name in open_clip.list_models()]

    def build(self) -> ExternalBackbone:
        """open_clip's image tower with fresh weights; the text tower is never made."""
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        described = self.described()
        try:
            vision = CLIPVisionCfg(**{**described["vision_cfg"], **self.config})
        except TypeError as error:
            raise UserError(f"{self.label}: {first_line(error)}") from error
        if vision.timm_model_name:
            pool = {"global_pool": vision.timm_pool} if vision.timm_pool else {}
            model = create_timm(vision.timm_model_name, self.model_copy(update={"config": {}}), **pool)
            return TimmBackbone(self, model, statistics=self._statistics())
        if self.drop_path:
            raise UserError(f"{self.label} has no drop_path: leave it out")
        if self.built_for is not None:
            vision.image_size = self.built_for
        vision.patch_dropout = 0.0
        tower = _build_vision_tower(described["embed_dim"], vision, described.get("quick_gelu", False))
        kind = OpenClipResNet if isinstance(vision.layers, tuple | list) else OpenClipViT
        return kind(self, tower, statistics=self._statistics())

    def locate(self, source: str) -> Any:
        """ "default" is the first published tag, "open_clip/<model>/<tag>" the one named."""
        from open_clip.pretrained import download_pretrained

        if not source.startswith("open_clip/") and source != "default":
            return source
        tag = self._tag(source)
        try:
            return download_pretrained(self._published(tag))
        except (OSError, RuntimeError) as error:
            repo = self._published(tag).get("hf_hub", "").rstrip("/")
            raise UserError(
                f"open_clip can't fetch {self.label}/{tag} ({first_line(error)}); on a machine with network run "
                f"`hf download {repo} --local-dir FOLDER` and give the checkpoint's path"
            ) from error

    def convert(self, state: Mapping[str, Tensor], facts: Mapping[str, Any], source: str) -> Converted:
        """The keys below `visual.`, without the projection; all others belong to the text tower."""
        if not any(key.startswith("visual.") for key in state):
            state = {f"visual.{key}": tensor for key, tensor in state.items()}
        projections: tuple[str, ...] = ("visual.proj", "visual.head.")
        trunk = self.described()["vision_cfg"].get("timm_model_name")
        if trunk:
            projections += tuple(f"visual.trunk.{name}" for name in published_by_timm(trunk)[1])
        kept = {key: tensor for key, tensor in state.items() if key.startswith("visual.")}
        kept = {key: tensor for key, tensor in kept.items() if not key.startswith(projections)}
        named = source == "default" or source.startswith("open_clip/")
        mean, std = self._statistics(self._tag(source) if named else None)
        return Converted(
            {key.removeprefix("visual.").removeprefix("trunk."): tensor for key, tensor in kept.items()},
            {"mean": mean, "std": std} if named else {},
            tuple(key for key in state if key not in kept),
        )

    def described(self) -> dict[str, Any]:
        """open_clip's own description of the model."""
        # Imported here: open_clip takes seconds, which our own backbones needn't pay.
        import open_clip

        name = self.architecture.replace("/", "-")
        found: dict[str, Any] | None = open_clip.get_model_config(name) if name in open_clip.list_models() else None
        if found is None:
            nearest = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(f'open_clip/{each}' for each in nearest)}?" if nearest else ""
            raise UserError(f"open_clip has no model {name!r}; {hint or 'see open_clip.list_models()'}")
        return found

    def _tag(self, source: str) -> str:
        """The published tag that "default" or "open_clip/<model>/<tag>" means, made with this model's activation."""
        from open_clip.pretrained import list_pretrained_tags_by_model

        quick = bool(self.described().get("quick_gelu", False))
        tags = list_pretrained_tags_by_model(self.architecture.replace("/", "-"))
        fitting = [tag for tag in tags if bool(self._published(tag).get("quick_gelu", False)) == quick]
        model, _, tag = source.rpartition("/")
        if source == "default" and fitting:
            return str(fitting[0])
        if model == self.label and tag in fitting:
            return tag
        other = "without" if quick else "with"
        raise UserError(
            f"{self.label} has no published weights {tag!r}; it has: {', '.join(fitting) or 'none'}"
            + (
                f"; made {other} QuickGELU: {', '.join(t for t in tags if t not in fitting)}"
                if len(tags) > len(fitting)
                else ""
            )
        )

    def _published(self, tag: str) -> Mapping[str, Any]:
        from open_clip.pretrained import get_pretrained_cfg

        found: Mapping[str, Any] = get_pretrained_cfg(self.architecture.replace("/", "-"), tag)
        return found

    def _statistics(self, tag: str | None = None) -> Statistics:
        """Mean and std of a tag, else of the model's first, else CLIP's."""
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from open_clip.pretrained import list_pretrained_tags_by_model

        tags = [tag] if tag else list_pretrained_tags_by_model(self.architecture.replace("/", "-"))
        found = self._published(tags[0]) if tags else {}
        return tuple(found.get("mean", OPENAI_DATASET_MEAN)), tuple(found.get("std", OPENAI_DATASET_STD))


class OpenClipTower(ExternalBackbone):
    """A tower of open_clip's own; `embed` is its vector before the projection into the space shared with text."""

    def __init__(self, config: OpenClipConfig, tower: Any, *, statistics: Statistics) -> None:
        size: Any = tower.image_size
        if config.in_channels != 3:
            conv = tower.conv1
            tower.conv1 = nn.Conv2d(
                config.in_channels,
                conv.out_channels,
                kernel_size=conv.kernel_size,
                stride=conv.stride,
                padding=conv.padding,
                bias=False,
            )
        native = (size, size) if isinstance(size, int) else (size[0], size[1])
        super().__init__(config, tower, native=native, statistics=statistics)

    def _enable_recompute(self) -> None:
        self._tower().set_grad_checkpointing(True)

    def _tower(self) -> Any:
        return self.model


class OpenClipViT(OpenClipTower):
    """open_clip's VisionTransformer; its position table is resized to the picture, bicubic and antialiased."""

    def __init__(self, config: OpenClipConfig, tower: Any, *, statistics: Statistics) -> None:
        tower.proj = None
        super().__init__(config, tower, statistics=statistics)

    def _has_norm(self, plain: bool) -> bool:
        # The norm of a CoCa tower is its pool's, of another width.
        return self._tower().attn_pool is None

    def _embed_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> (B, 1 + h * w, C) as open_clip's `_embeds` gives it at its own size, and (h, w)."""
        tower = self._tower()
        patches = tower.conv1(images)  # (B, C, h, w)
        height, width = patches.shape[-2:]
        table = tower.positional_embedding
        grid = table[1:].unflatten(0, tower.grid_size)[None]  # (1, h0, w0, C)
        positions = torch.cat([table[:1], resize_positions(grid, (height, width))[0].flatten(0, 1)])
        tokens = torch.cat([tower.class_embedding.expand(images.shape[0], 1, -1), patches.flatten(2).mT], dim=1)
        return tower.ln_pre(tokens + positions), (height, width)

    def _maps(self, images: Tensor, indices: tuple[int, ...] | None, norm: bool) -> list[Tensor]:
        tokens, grid = self._embed_patches(images)
        wanted = None if indices is None else list(indices)
        _, states = self._tower().transformer.forward_intermediates(tokens, indices=wanted, stop_early=True)
        if norm:
            states = [self._tower().ln_post(state) for state in states]
        return [state[:, 1:].mT.unflatten(2, grid) for state in states]  # (B, C, h, w)

    def _last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self._tower().transformer(self._embed_patches(images)[0])
        if self._has_norm(True):
            tokens = self._tower().ln_post(tokens)
        return tokens[:, :1], tokens[:, 1:]

    def _vector(self, images: Tensor) -> Tensor:
        pooled: Tensor = self._tower()._pool(self._tower().transformer(self._embed_patches(images)[0]))[0]
        return pooled


class OpenClipResNet(OpenClipTower):
    """CLIP's ResNet. Its attention pool projects as it pools, so that `embed` is what `encode_image` gives."""

    def _has_norm(self, plain: bool) -> bool:
        return False

    def _maps(self, images: Tensor, indices: tuple[int, ...] | None, norm: bool) -> list[Tensor]:
        wanted = None if indices is None else list(indices)
        # stop_early=False: open_clip 3.3 reads it the wrong way round here.
        found = self._tower().forward_intermediates(images, indices=wanted, stop_early=False, intermediates_only=True)
        maps: list[Tensor] = found["image_intermediates"]
        return maps

    def _last(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = self._maps(images, (4,), False)[0].permute(0, 2, 3, 1)  # (B, h, w, C)
        return patches.new_zeros(patches.shape[0], 0, patches.shape[-1]), patches

    def _vector(self, images: Tensor) -> Tensor:
        maps = self._maps(images, (4,), False)[0]
        table = self._tower().attnpool.positional_embedding
        side = round((table.shape[0] - 1) ** 0.5)
        grid = resize_positions(table[1:].unflatten(0, (side, side))[None], (maps.shape[2], maps.shape[3]))
        positions = torch.cat([table[:1], grid[0].flatten(0, 1)])
        pooled: Tensor = torch.func.functional_call(
            self._tower().attnpool, {"positional_embedding": positions}, (maps,)
        )
        return pooled
