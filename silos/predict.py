"""A released model on a hospital's own images: the command `intramural-silo predict`.

    predict(site, Path("demo-model"), Path("predictions"))

Images are those of the site's configuration, or of a folder that is given; they are chosen as for training. Where
the study's hospitals keep their normalisation layers, this hospital's own newest ones are put in. Nothing is sent
and no ledger line is written.
"""

from pathlib import Path

import torch

from models.console import Report
from models.errors import ConfigError
from silos import inference, local_norm
from silos.config import Site
from silos.inference.sources import Sources, find, of_instances
from silos.inference.written import write
from silos.training import device_for
from silos.visit import named, scan_site


def predict(
    site: Site, bundle: Path, out: Path, dicom: Path | None = None, progress: Report | None = None
) -> tuple[Path, inference.Evaluator]:
    """Predict, and write a table and, where the study outlines, a DICOM SEG of each series.

    Args:
        site: The hospital.
        bundle: The folder of a released model.
        out: The folder to make; see `silos.inference.written`.
        dicom: A folder of images, or one image; the site's own by default.
        progress: Told how long work goes on.

    Returns:
        The folder, and what predicted.

    Raises:
        ConfigError: The folder exists, the bundle is none, or this hospital keeps no layers of the study.
        DataError: There is nothing to predict, or a file is damaged.
    """
    if not (bundle / "configs").is_dir():  # a study's own folder holds an agreement too
        raise ConfigError(f"{bundle} is no released model", "release one first: intramural-aggregator release")
    plan = inference.agreement(bundle).plan
    torch.set_num_threads(site.run.threads)
    network = inference.network(bundle, device_for(site.run.device), _kept(site, bundle))
    cases = inference.Cases(_sources(site, bundle, dicom, progress), inference.preprocessing(bundle))
    evaluator = inference.Evaluator(network, cases, inference.inferer(bundle), inference.postprocessing(bundle))
    return write(bundle, evaluator, out, named(progress, f"predicting with {plan.name}")), evaluator


def _sources(site: Site, bundle: Path, dicom: Path | None, progress: Report | None) -> Sources:
    plan = inference.agreement(bundle).plan
    if dicom is not None:
        return find(dicom, plan.task, burned_in=site.data.burned_in)
    found = scan_site(site, progress, plan)
    of_study = found.instances["Modality"].isin(plan.task.modality)
    other = {"modality not of this study": int((~of_study).sum())} if not of_study.all() else {}
    return of_instances(found.instances[of_study], {**found.left_out, **other}, site.data.folder, plan.task)


def _kept(site: Site, bundle: Path) -> Path | None:
    """The layers that this hospital kept of the study, if the study's hospitals keep any."""
    found = inference.agreement(bundle)
    if not found.plan.strategy.local_norm:
        return None
    folder = site.run.work / "local" / found.study
    newest = local_norm.newest(folder, found.plan.rounds)
    if newest is None:
        raise ConfigError(
            f"{folder}: this hospital kept no normalisation layers of the study {found.plan.name}, and no release "
            "holds any",
            "run the model in a hospital that trained it",
        )
    return newest
