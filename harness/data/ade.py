"""ADE20K (SceneParsing): its folders."""

from __future__ import annotations

from cispbench.harness.data.layout import Layout, SplitFolders

HOW_TO_GET = "Unpack ADEChallengeData2016.zip there (its images/ and annotations/ with training/ and validation/)."

LAYOUT = Layout(
    folders=("ADEChallengeData2016", "."),
    markers=("images/training", "annotations/training"),
    list_pairs=SplitFolders(
        images={"train": "images/training", "val": "images/validation"},
        masks={"train": "annotations/training", "val": "annotations/validation"},
        how_to_get=HOW_TO_GET,
    ),
    how_to_get=HOW_TO_GET,
    image_id=r"ADE_(train|val)_\d{8}",
    train_list="ADEChallengeData2016's training",
    other_lists={25574: "the full ADE20K of 2021, not its SceneParsing part of 2016"},
)
