"""tools/survey.py: what it measures of one backbone, and what it says where nothing matches."""

from vitdense.surveying import as_page, examine, named


def test_a_backbone_is_measured_and_a_refusal_is_shown() -> None:
    findings = [examine(("vit_nano_patch8", {})), examine(("hf/bert", {}))]
    assert findings[0].strides == (8, 8, 8, 8)
    assert (findings[0].any_size, findings[0].backward, findings[0].recompute, findings[0].one_channel) == (True,) * 4
    assert findings[1].problem
    page = as_page(findings)
    assert "1 of 2 names work" in page
    assert "| `vit_nano_patch8` | 8, 8, 8, 8 | 64, 64, 64, 64 | yes | yes |" in page


def test_every_library_is_surveyed() -> None:
    names = [name for name, _ in named()]
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names if "/" in name} == {"timm", "hf", "open_clip"}
    assert {"vit_nano_patch8", "swin_nano", "sam_base_patch16"} <= set(names)
