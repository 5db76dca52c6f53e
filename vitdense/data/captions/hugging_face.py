"""`hf_captions`: data sets of the Hugging Face hub, or saved ones, through the `datasets` package."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitdense.contracts import DATA, Split
from vitdense.data.captions.files import CAPTION_KEYS, IMAGE_KEYS
from vitdense.data.captions.lengths import SortedConfig, SortedSamples
from vitdense.data.captions.rows import choose_column, text_fault
from vitdense.data.captions.samples import Entry
from vitdense.data.captions.views import Picture
from vitdense.errors import DataError, UserError


@DATA.register("hf_captions")
class HuggingFaceCaptionsConfig(SortedConfig):
    """`root` is a folder that `save_to_disk` wrote, or a name of the hub with its `subset`; `image_key` is the column
    of pictures, `caption_key` that of texts or lists of them.
    """

    subset: str | None = None
    train: str = "train"
    val: str = "validation"
    image_key: str | None = None
    caption_key: str | None = None

    def build(self, split: Split) -> "TableSamples":
        """The samples of a split; UserError without the package, DataError where data set or column is missing."""
        if self.root is None:
            raise DataError("data 'hf_captions' needs data.root=NAME, of the hub or of a saved folder")
        return TableSamples(self, split, self._table(self.train if split == "train" else self.val))

    def _table(self, split: str) -> Any:
        try:
            import datasets
        except ImportError:
            raise UserError("data 'hf_captions' needs the package datasets: pip install 'vitdense[datasets]'") from None
        try:
            if Path(str(self.root)).is_dir() and not self.subset:
                found = datasets.load_from_disk(self.root)
                return found[split] if hasattr(found, "keys") else found
            return datasets.load_dataset(self.root, self.subset, split=split)
        except (OSError, ValueError, KeyError) as fault:
            raise DataError(f"{self.root}: split {split!r}: {fault}") from None


class TableSamples(SortedSamples):
    """Rows of a table whose pictures stay encoded until they are read."""

    def __init__(self, config: HuggingFaceCaptionsConfig, split: Split, table: Any) -> None:
        import datasets

        super().__init__(config, split)
        place, columns = Path(str(config.root)), list(table.column_names)
        self.name = str(config.root)
        self.image = choose_column(place, config.image_key, IMAGE_KEYS, columns, "pictures")
        self.caption = choose_column(place, config.caption_key, CAPTION_KEYS, columns, "captions")
        self.table = table.cast_column(self.image, datasets.Image(decode=False))
        if not len(self.table):
            raise DataError(f"{self.name}: the split has no rows")

    def __len__(self) -> int:
        return len(self.table)

    def captions(self) -> Iterable[Sequence[str]]:
        """The column; what is no text has no length."""
        for found in self.table[self.caption]:
            each = found if isinstance(found, list) and found else [found]
            yield [caption if isinstance(caption, str) else "" for caption in each]

    def entry(self, epoch: int, index: int) -> Entry:
        """The row at `index`."""
        row = self.table[index]
        where = f"{self.name}[{index}]"
        image, found = row[self.image], row[self.caption]
        if not isinstance(image, dict) or not (image.get("bytes") or image.get("path")):
            raise DataError(f"{where}: {self.image} is missing")
        captions = found if isinstance(found, list) else [found]
        for caption in captions or [None]:
            wrong = text_fault(caption)
            if wrong is not None:
                raise DataError(f"{where}: {self.caption} {wrong}")
        picture = Picture(where, image["bytes"]) if image.get("bytes") else Picture(image["path"])
        return Entry(str(index), picture, tuple(caption.strip() for caption in captions))
