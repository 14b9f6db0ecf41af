"""How public data sets lie on disk when they have been downloaded, one ``Layout`` each; no code of their own.

Patterns are regular expressions for the end of a file's path, with ``/`` between folders, matched from the start of a
folder or file name. Their named groups say whose scan it is: ``subject`` (or ``number``, where every ``source`` and
``split`` counts from one), and where there are any ``session`` and ``site``; ``run`` tells repeated scans apart, of
which the first is taken. Of several patterns for a contrast the first that finds a subject's scan counts. Where each
set is obtained, and its terms, stands in docs/datasets.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NII = r"\.nii(?:\.gz)?"


@dataclass(frozen=True)
class CovariateTable:
    """A table that comes with a set.

    Attributes
    ----------
    files : tuple of str
        Names, with wildcards; the first that exists anywhere in the tree is read.
    key : str
        Column that names the subject.
    subject : str
        Format of the subject's name from that column's value as text, or as a number where it is one: ``IXI{:03d}``.
    columns : mapping
        Our column to theirs.
    values : mapping
        Their values to ours, by our column; values that are not listed stay as they are.
    healthy : tuple of str
        Column and value that all rows of a subject must have for the subject to count as healthy; empty for none.
    """

    files: tuple[str, ...]
    key: str
    subject: str = "{}"
    columns: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    healthy: tuple[str, str] | tuple[()] = ()


@dataclass(frozen=True)
class Layout:
    """One data set.

    Attributes
    ----------
    name, title : str
        For the command line and for people.
    scans : mapping
        Contrast to patterns.
    references, brain_masks : mapping
        Pattern to the contrasts whose grid the mask lies on.
    example : str
        A path that is there, for the message when it is not.
    healthy : bool
        Whether subjects without a reference are known to be healthy.
    constants : mapping
        Columns that are the same for all.
    by_group : mapping
        Column to (named group, its values to ours): what a path says of scanner, site, split or lesion type.
    tables : tuple of CovariateTable
        Later ones fill what earlier ones left open.
    label : int or None
        The only value of the reference that is lesion; None takes every value above 0.
    first_session : bool
        Take a subject's first session only.
    """

    name: str
    title: str
    scans: Mapping[str, tuple[str, ...]]
    example: str
    references: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    brain_masks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    healthy: bool = False
    constants: Mapping[str, str] = field(default_factory=dict)
    by_group: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    tables: tuple[CovariateTable, ...] = ()
    label: int | None = None
    first_session: bool = False


ALL = ("T1w", "T2w", "FLAIR")
ONE_TWO = {"1": "M", "2": "F"}
_BRATS = rf"(?P<subject>BraTS20_(?:Training|Validation)_\d+|BraTS2021_\d+)/(?P=subject)_{{}}{NII}"
_BRATS_2023 = rf"(?P<subject>BraTS-(?P<task>[A-Z]+)-\d+)-(?P<session>\d+)/(?P=subject)-(?P=session)-{{}}{NII}"
_SHIFTS = r"(?P<source>msseg|best|ljubljana)/(?P<split>train|dev_in|eval_in|dev_out)/{}/(?P<number>\d+)_{}"
_WMH = r"(?:(?P<split>training|test)/)?(?P<site>Utrecht|Singapore|Amsterdam/[^/]+|GE3T)/(?P<subject>\d+)/{}"
_NOT_RAW = r"(?<!raw/)(?<!coregistered_resampled/)"
_MSLUB = r"(?P<subject>patient\d+)/(?:(?P=subject)_)?{}" + NII

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="ixi",
        title="IXI",
        scans={
            contrast: (rf"(?P<subject>IXI\d{{3}})-(?P<site>[A-Za-z]+)-\d+-{suffix}{NII}",)
            for contrast, suffix in (("T1w", "T1"), ("T2w", "T2"))
        },
        example="IXI002-Guys-0828-T1.nii.gz",
        healthy=True,
        by_group={
            "site": ("site", {"Guys": "IXI-Guys", "HH": "IXI-HH", "IOP": "IXI-IOP"}),
            "scanner": ("site", {"Guys": "Philips Intera 1.5T", "HH": "Philips Intera 3T", "IOP": "GE 1.5T"}),
        },
        tables=(
            CovariateTable(
                ("IXI.csv", "IXI.xls"),
                "IXI_ID",
                "IXI{:03d}",
                {"age": "AGE", "sex": "SEX_ID (1=m, 2=f)"},
                {"sex": {**ONE_TWO, "0": ""}},
            ),
        ),
    ),
    Layout(
        name="brats",
        title="BraTS (2020 to 2024)",
        scans={
            contrast: (_BRATS.format(old), _BRATS_2023.format(new))
            for contrast, old, new in (("T1w", "t1", "t1n"), ("T2w", "t2", "t2w"), ("FLAIR", "flair", "t2f"))
        },
        references={
            _BRATS.format("seg"): ALL,
            _BRATS_2023.format("seg"): ALL,
            # One reference of 2020 was published under another name.
            r"(?P<subject>BraTS20_Training_355)/W39_1998\.09\.19_Segm" + NII: ALL,
        },
        example="BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz",
        constants={"lesion_type": "glioma"},
        by_group={"lesion_type": ("task", {"MEN": "meningioma", "MET": "metastasis", "PED": "paediatric glioma"})},
        tables=(CovariateTable(("survival_info.csv",), "Brats20ID", columns={"age": "Age"}),),
    ),
    Layout(
        name="atlas2",
        title="ATLAS R2.0",
        scans={
            "T1w": (
                r"(?P<site>R\d+)/sub-(?P<subject>\w+)/ses-(?P<session>\w+)/anat/"
                r"sub-(?P=subject)_ses-(?P=session)_space-MNI152NLin2009aSym_T1w" + NII,
            )
        },
        references={
            r"sub-(?P<subject>\w+)/ses-(?P<session>\w+)/anat/sub-(?P=subject)_ses-(?P=session)"
            r"_space-MNI152NLin2009aSym_label-L_desc-T1lesion_mask" + NII: ("T1w",)
        },
        example="R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz",
        constants={"lesion_type": "stroke"},
        by_group={"site": ("site", {})},
    ),
    Layout(
        name="shifts-ms",
        title="Shifts 2.0, white matter lesions of multiple sclerosis",
        scans={
            contrast: (_SHIFTS.format(folder, f"{suffix}_isovox{NII}"),)
            for contrast, folder, suffix in (("T1w", "t1", "T1"), ("T2w", "t2", "T2"), ("FLAIR", "flair", "FLAIR"))
        },
        references={_SHIFTS.format("gt", f"gt_isovox{NII}"): ALL},
        brain_masks={_SHIFTS.format("fg_mask", f"isovox_fg_mask{NII}"): ALL},
        example="msseg/train/flair/1_FLAIR_isovox.nii.gz",
        constants={"lesion_type": "multiple sclerosis"},
        by_group={
            "site": ("source", {}),
            "split": ("split", {"train": "train", "dev_in": "validation", "eval_in": "test", "dev_out": "test"}),
        },
    ),
    Layout(
        name="wmh",
        title="WMH segmentation challenge 2017",
        scans={contrast: (_WMH.format(rf"orig/{contrast.removesuffix('w')}{NII}"),) for contrast in ("T1w", "FLAIR")},
        references={_WMH.format(rf"wmh{NII}"): ("T1w", "FLAIR")},
        example="training/Utrecht/0/orig/FLAIR.nii.gz",
        constants={"lesion_type": "white matter hyperintensity"},
        by_group={"site": ("site", {}), "split": ("split", {"training": "train", "test": "test"})},
        label=1,
    ),
    Layout(
        name="isles2022",
        title="ISLES 2022",
        scans={
            "FLAIR": (
                r"sub-(?P<subject>strokecase\d+)/ses-(?P<session>\d+)/(?:anat/)?"
                r"sub-(?P=subject)_ses-(?P=session)_(?i:flair)" + NII,
            )
        },
        references={
            r"derivatives/sub-(?P<subject>strokecase\d+)/ses-(?P<session>\d+)/"
            r"sub-(?P=subject)_ses-(?P=session)_msk" + NII: ("FLAIR",)
        },
        example="sub-strokecase0001/ses-0001/anat/sub-strokecase0001_ses-0001_FLAIR.nii.gz",
        constants={"lesion_type": "stroke"},
    ),
    Layout(
        name="mslub",
        title="MSLUB, multiple sclerosis, Ljubljana",
        scans={
            contrast: ("coregistered/" + _MSLUB.format(suffix), _NOT_RAW + _MSLUB.format(suffix))
            for contrast, suffix in (("T1w", "T1W"), ("T2w", "T2W"), ("FLAIR", "FLAIR"))
        },
        references={
            "coregistered/" + _MSLUB.format("consensus_gt"): ALL,
            _NOT_RAW + _MSLUB.format("consensus_gt"): ALL,
        },
        brain_masks={
            "coregistered/" + _MSLUB.format("brainmask"): ALL,
            _NOT_RAW + _MSLUB.format("brainmask"): ALL,
        },
        example="patient01/patient01_FLAIR.nii.gz",
        constants={"lesion_type": "multiple sclerosis", "site": "Ljubljana", "scanner": "Siemens Trio 3T"},
        tables=(CovariateTable(("patient_info.csv",), "patient_id", "patient{:02d}", {"age": "age", "sex": "sex"}),),
    ),
    Layout(
        name="oasis3",
        title="OASIS-3",
        scans={
            contrast: (
                r"(?P<subject>OAS3\d{4})_MR_(?P<session>d\d+)/(?P<run>anat\d+(?:/NIFTI)?/"
                rf"sub-(?P=subject)_ses{{1,2}}-(?P=session)(?:_acq-\w+)?(?:_run-\d+)?)_{contrast}{NII}",
            )
            for contrast in ALL
        },
        example="OAS30001_MR_d0129/anat1/sub-OAS30001_sess-d0129_T1w.nii.gz",
        constants={"site": "Knight ADRC"},
        tables=(
            CovariateTable(
                ("OASIS3_demographics.csv",),
                "OASISID",
                columns={"age": "AgeatEntry", "sex": "GENDER"},
                values={"sex": ONE_TWO},
            ),
            CovariateTable(("OASIS3_UDSb4_cdr.csv",), "OASISID", healthy=("CDRTOT", "0")),
        ),
        first_session=True,
    ),
    Layout(
        name="camcan",
        title="Cam-CAN",
        scans={
            contrast: (rf"sub-(?P<subject>CC\d+)/anat/sub-(?P=subject)_{contrast}{NII}",) for contrast in ("T1w", "T2w")
        },
        example="sub-CC110033/anat/sub-CC110033_T1w.nii.gz",
        healthy=True,
        constants={"site": "Cambridge", "scanner": "Siemens TIM Trio 3T"},
        tables=(
            CovariateTable(
                ("participants.tsv",),
                "participant_id",
                columns={"age": "age", "sex": "gender_code"},
                values={"sex": ONE_TWO},
            ),
        ),
    ),
    Layout(
        name="hcp",
        title="HCP Young Adult",
        scans={
            contrast: (rf"(?P<subject>\d{{6}})/T1w/{contrast}_acpc_dc_restore{NII}",) for contrast in ("T1w", "T2w")
        },
        brain_masks={rf"(?P<subject>\d{{6}})/T1w/brainmask_fs{NII}": ("T1w", "T2w")},
        example="100307/T1w/T1w_acpc_dc_restore.nii.gz",
        healthy=True,
        constants={"site": "Washington University", "scanner": "Siemens Connectom Skyra 3T"},
        tables=(CovariateTable(("unrestricted_*.csv",), "Subject", columns={"age": "Age", "sex": "Gender"}),),
    ),
)
