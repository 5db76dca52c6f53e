"""Zero-shot segmentation: each cell of a contrastive tower compared with class names (MaskCLIP,
https://arxiv.org/abs/2112.01071)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Backbone, Batch, ContrastiveHead, Head, Level, Outputs, Predictions, Tokens
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig
from vitdense.model import Model
from vitdense.ops.upsampled_argmax import upsampled_argmax
from vitdense.pictures import make_palette
from vitdense.zero_shot.classification import build_classifier, contrastive_head
from vitdense.zero_shot.prompts import ClassName, Prompts


def build_segmenter(
    model: Model, prompts: Prompts, classes: Sequence[ClassName], inference: InferenceConfig | None = None
) -> Model:
    """A model whose `predict` gives masks of these classes; it shares the tower's weights.

    Cells are `value_tokens` of the backbone through the head's projection: of a ViT with a class token the last
    block's values, of one with an attention pool the pool's, and of all that average (Swin, BEiT) the normed tokens.
    UserError for a model without text tower, and for a head that reads something else than one vector.
    """
    head = contrastive_head(model)
    if head.reads != "vector":
        raise UserError(f"head {type(head).__name__} pools the tokens itself: masks need one that reads a vector")
    classifier = build_classifier(model, prompts, classes)
    cells = ProjectedCells(model.backbone, head, dim=classifier.weights.shape[1])
    return Model(
        cells,
        TextHead(classifier.weights, classifier.scale, classifier.bias),
        classes=classifier.names,
        palette=make_palette(len(classes)),
        inference=inference or model.inference,
    ).to(model.get_buffer("mean"))


class ProjectedCells(Backbone):
    """One map of embeddings (B, D, h, w) of unit length in the space of texts."""

    def __init__(self, backbone: Backbone, head: ContrastiveHead, *, dim: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.embed_dim, self.num_layers = backbone.embed_dim, backbone.num_layers
        self.mean, self.std = backbone.mean, backbone.std
        self.levels = (Level(dim, max(level.stride for level in backbone.levels)),)

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> [(B, D, h, w)]."""
        patches, _, (height, width) = self.backbone.value_tokens(images)
        cells = self.head.encode_image([patches.flatten(0, 1)])  # (B * h * w, D)
        return [F.normalize(cells, dim=-1).view(len(images), height, width, -1).permute(0, 3, 1, 2)]

    def tokens(self, images: Tensor) -> Tokens:
        """The backbone's own."""
        return self.backbone.tokens(images)

    def embed(self, images: Tensor) -> Tensor:
        """The backbone's own."""
        return self.backbone.embed(images)

    def layer_of(self, parameter: str) -> int:
        """The backbone's own; its head is above."""
        part, _, rest = parameter.partition(".")
        return self.backbone.layer_of(rest) if part == "backbone" else self.num_layers + 1


class TextHead(Head):
    """`logits` (B, K, h, w): products of cells and classes."""

    dense = "logits"
    weights: Tensor

    def __init__(self, weights: Tensor, scale: float, bias: float) -> None:
        super().__init__()
        self.num_classes, self.scale, self.bias = len(weights), scale, bias
        self.register_buffer("weights", weights)

    def forward(self, features: list[Tensor], batch: Batch) -> Outputs:
        """[(B, D, h, w)] -> logits (B, K, h, w)."""
        products = F.conv2d(features[0], self.weights[:, :, None, None].to(features[0].dtype))
        return {"logits": self.scale * products + self.bias}

    def losses(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Nothing is learnt."""
        raise UserError("zero-shot segmentation learns nothing: train a head such as linear instead")

    def predict(self, outputs: Outputs, batch: Batch) -> Predictions:
        """One (H, W) tensor of class indices for each picture."""
        pairs = zip(outputs["logits"], batch["sizes"], strict=True)
        return [upsampled_argmax(logits[None], (size[0], size[1]))[0] for logits, size in pairs]
