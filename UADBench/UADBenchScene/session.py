"""Between scene and worker: what was asked for, which map each job left, and what an answer changes in the scene.

A session turns volume nodes into requests and answers into nodes. It never waits: whoever owns it calls ``poll`` from a
timer or a loop. Nodes are remembered by their ID and looked up again, since a scene may lose any of them while the
worker computes. Detections queue in the order in which they were started.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import comparison, models, results, segments, volumes
from .texts import _
from .volumes import SceneError

Event = dict[str, Any]


class Session:
    """Detections, and what follows from them, of one scene.

    Parameters
    ----------
    scene : vtkMRMLScene
    make_client : callable
        Makes a ``worker.WorkerClient`` when it is first needed.
    """

    def __init__(self, scene: Any, make_client: Callable[[], Any]) -> None:
        self._scene, self._make_client = scene, make_client
        self._client: Any = None
        self.history = segments.History()
        self._clear()

    def _clear(self) -> None:
        """Forget all jobs."""
        self._open: dict[str, tuple[str, dict[str, Any]]] = {}
        self._requests: dict[str, tuple[str, dict[str, Any]]] = {}
        self._maps: dict[str, tuple[str, str]] = {}
        self._references: dict[str, tuple[str, np.ndarray]] = {}
        self._due = 0
        self.history.clear()

    # -- state

    @property
    def client(self) -> Any:
        """The worker's client."""
        if self._client is None:
            self._client = self._make_client()
        return self._client

    @property
    def queue(self) -> list[str]:
        """Jobs that have not ended, the running one first."""
        return list(self._open)

    @property
    def waiting(self) -> bool:
        """Whether an answer of the worker is due."""
        return bool(self._open) or self._due > 0

    @property
    def log(self) -> list[str]:
        """The last lines of the worker's log."""
        return [] if self._client is None else list(self._client.log)

    def close(self) -> None:
        """End the worker and whatever it does. Results stay."""
        if self._client is not None:
            self._client.close()
        self._client = None
        self._clear()

    # -- requests

    def start(
        self,
        volume: Any,
        model_ids: list[str],
        *,
        contrast: str | None = None,
        operating_point: str = "",
        brain_mask: Any = None,
        one_segment: bool = False,
        **options: Any,
    ) -> str:
        """Start a detection and return the name of the job; ``poll`` tells the rest.

        Parameters
        ----------
        volume : vtkMRMLScalarVolumeNode
        model_ids : list of str
        contrast : str, optional
            What the user says it is; by default what the volume's name states.
        operating_point : str
            Name of a threshold of the models; the usual one when empty.
        brain_mask : vtkMRMLNode, optional
            Segmentation, label map or volume.
        one_segment : bool
            All findings in one segment.
        **options
            ``device``, ``minimum_ml``, ``force``, ``batch``, ``reconstruct``: as ``WorkerClient.detect``.

        Raises
        ------
        SceneError
            When the volume or mask cannot be used, NO_MODEL, or WORKER_NOT_STARTED.
        """
        voxels, affine = volumes.read_volume(volume)
        if not model_ids:
            raise SceneError("NO_MODEL", _("no model is chosen"), _("choose one of the installed models"))
        request = {"model_ids": list(model_ids), "contrast": contrast, "operating_point": operating_point}
        request |= {"brain_mask": brain_mask, "one_segment": one_segment, **options}
        # Only jobs that are still open, and the ones that failed last, can be started again.
        self._requests = dict(list(self._requests.items())[-4:])
        job = self._started(
            lambda: self.client.detect(
                voxels,
                affine,
                list(model_ids),
                contrast=contrast or volumes.contrast_in_name(volume.GetName()),
                operating_point=operating_point or models.DEFAULT_POINT,
                brain_mask=None if brain_mask is None else volumes.read_mask(brain_mask, volume)[0],
                **options,
            )
        )
        self._open[job] = self._requests[job] = (volume.GetID(), request)
        return job

    def again(self, job: str, changes: dict[str, Any]) -> str:
        """Start a job that failed once more, with changes that its failure offered.

        Raises
        ------
        SceneError
            As ``start``.
        """
        volume_id, request = self._requests.pop(job)
        return self.start(self._scene.GetNodeByID(volume_id), **(request | changes))

    def can_retry(self, job: str) -> bool:
        """Return whether a job that failed can be started again: its volume is there."""
        return job in self._requests and self._scene.GetNodeByID(self._requests[job][0]) is not None

    def check(self, volume: Any, contrast: str | None = None, brain_mask: Any = None) -> str:
        """Ask what is to be noticed about a scan; arguments and errors are those of ``start``."""
        voxels, affine = volumes.read_volume(volume)
        mask = None if brain_mask is None else volumes.read_mask(brain_mask, volume)[0]
        stated = contrast or volumes.contrast_in_name(volume.GetName())
        job = self._started(lambda: self.client.check(voxels, affine, contrast=stated, brain_mask=mask))
        self._open[job] = (volume.GetID(), {})
        return job

    def ask_devices(self) -> None:
        """Ask what there is to compute on."""
        self._started(lambda: self.client.request("device"))
        self._due += 1

    def move_threshold(
        self,
        map_node: Any,
        threshold: float,
        minimum_ml: float = 0.1,
        smoothing_mm: float = 0.0,
        operating_point: str = "user",
        origin: str = "chosen by the user",
    ) -> None:
        """Ask for the findings of a map at another threshold; ``poll`` returns the changed nodes.

        Raises
        ------
        SceneError
            SCENE_CLOSED when the map's scan has left the scene, WORKER_NOT_STARTED.
        """
        job, model = self._job_with([map_node]), self._maps[map_node.GetID()][1]
        options = {"smoothing_mm": float(smoothing_mm), "operating_point": operating_point}
        options["origin"] = origin or "unknown"
        self._due += 1
        self.client.threshold(job, model, threshold, minimum_ml, **options)

    def compare(self, volume: Any, reference: Any, percentile: float = 95.0) -> bool:
        """Compare the newest map of each model of a scan with a reference; ``poll`` returns table, chart and agreement.

        Parameters
        ----------
        volume : vtkMRMLScalarVolumeNode
        reference : vtkMRMLNode
            Segmentation, label map or volume, resampled to the scan's voxels by ``volumes.read_mask``'s rule.
        percentile : float
            Of the Hausdorff distance.

        Returns
        -------
        bool
            Whether the reference had to be resampled.

        Raises
        ------
        SceneError
            NO_RESULT when the scan has no map, NO_REFERENCE, and whatever reading the reference refuses.
        """
        maps = list({node.GetAttribute("UADBench.Model"): node for node in results.maps_of(volume)}.values())
        if not maps:
            raise SceneError(
                "NO_RESULT", _("'{name}' has no anomaly map").format(name=volume.GetName()), _("detect first")
            )
        if reference is None:
            raise SceneError(
                "NO_REFERENCE", _("no reference is chosen"), _("choose a segmentation, a label map or a file")
            )
        mask, resampled = volumes.read_mask(reference, volume)
        job = self._job_with(maps)
        self._references[job] = (reference.GetName(), mask)
        self._started(lambda: self.client.compare(job, mask, percentile))
        self._due += 1
        return resampled

    def export(
        self,
        map_node: Any,
        folder: Path,
        formats: list[str],
        *,
        stem: str = "scan",
        reference: Any = None,
        series: list[str] | None = None,
    ) -> None:
        """Ask for the files of a map's detection; ``poll`` returns their names.

        Parameters
        ----------
        map_node : vtkMRMLScalarVolumeNode
        folder : pathlib.Path
        formats : list of str
            ``"files"`` (NIfTI, CSV, JSON, PNG, HTML: what the command line writes) and ``"dicom-seg"``.
        stem : str
            What the files' names begin with.
        reference : vtkMRMLNode, optional
            For the pictures of the report.
        series : list of str, optional
            DICOM files that the scan was loaded from, for ``"dicom-seg"``.

        Raises
        ------
        SceneError
            SCENE_CLOSED, NOT_DICOM, WORKER_NOT_STARTED.
        """
        job, volume = self._job_with([map_node]), results.input_of(map_node)
        dicom = self._dicom_of(map_node, series) if "dicom-seg" in formats else None
        used = (results.summary_of(map_node).get("contrast") or {}).get("used")
        options = {"contrast": used if used in ("T1w", "T2w", "FLAIR") else None, "stem": stem, "dicom": dicom}
        options["reference"] = None if reference is None else volumes.read_mask(reference, volume)[0]
        voxels = volumes.read_volume(volume)[0]
        self._started(lambda: self.client.export(job, folder.resolve(), formats, voxels, **options))
        self._due += 1

    @staticmethod
    def _dicom_of(map_node: Any, series: list[str] | None) -> dict[str, Any]:
        """Return what a DICOM Segmentation of a map's findings is made of."""
        volume, nodes = results.input_of(map_node), results.nodes_of(map_node)
        if not series:
            raise SceneError(
                "NOT_DICOM",
                _("'{name}' was not loaded from DICOM files that are still there").format(name=volume.GetName()),
                _("load the scan through Slicer's DICOM module, or export NIfTI"),
            )
        labels, names = np.zeros(volume.GetImageData().GetDimensions(), dtype=np.uint8), []
        for number, (name, inside) in enumerate(volumes.segments_on(nodes.segmentation, volume), start=1):
            labels[inside & (labels == 0)] = number
            names.append(name)
        # The series knows nothing of a transform that was applied in Slicer.
        affine = volumes.ijk_to_ras(volume)
        model = map_node.GetAttribute("UADBench.Model")
        return {"labels": labels, "affine": affine, "names": names, "series": series, "model": model}

    def cancel(self, job: str) -> None:
        """Stop a job; ``poll`` confirms it within a second or so."""
        if self._client is not None:
            self._client.cancel(job)

    def cancel_orphans(self) -> list[str]:
        """Stop the jobs whose volume has left the scene, and return their names."""
        orphans = [
            job for job, (volume_id, _request) in self._open.items() if self._scene.GetNodeByID(volume_id) is None
        ]
        for job in orphans:
            self.cancel(job)
        return orphans

    def _started(self, send: Callable[[], Any]) -> Any:
        """Send something to the worker, with what the operating system refuses put into words."""
        try:
            return send()
        except OSError as error:
            raise SceneError(
                "WORKER_NOT_STARTED",
                _("the computation could not be started ({reason})").format(reason=error.strerror or error),
                _("check the Python interpreter and the free space of the temporary folder"),
            ) from error

    def _job_with(self, maps: list[Any]) -> str:
        """Return a job that has all of some maps of one scan in the worker's memory, sent there now if need be."""
        volume = results.input_of(maps[0])
        if volume is None:
            raise SceneError(
                "SCENE_CLOSED", _("the map's scan is no longer in the scene"), _("load it and detect again")
            )
        jobs = {self._maps.get(node.GetID(), ("", ""))[0] for node in maps}
        if len(jobs) == 1 and self._client is not None and self._client.has(next(iter(jobs))):
            return jobs.pop()
        kept = [
            {
                "model": node.GetAttribute("UADBench.Model"),
                "map": results.map_values(node),
                "threshold": float(node.GetAttribute("UADBench.Threshold")),
                "summary": results.summary_of(node) | results.setting_of(node),
            }
            for node in maps
        ]
        job = self._started(lambda: self.client.remember(volumes.world_affine(volume), kept))
        self._maps |= {node.GetID(): (job, entry["model"]) for node, entry in zip(maps, kept, strict=True)}
        self._due += 1
        return job

    # -- answers

    def poll(self) -> list[Event]:
        """Return the worker's events since the last call. What they change in the scene is changed, and comes with
        them as ``nodes``; what cannot be changed any more becomes a ``failed``.
        """
        if self._client is None:
            return []
        return [self._take(event) for event in self._client.poll()]

    def _take(self, event: Event) -> Event:
        """Act on one event."""
        kind, job = event["event"], event.get("job")
        mine = job in self._open
        if kind == "result":
            if not mine:
                self._due = max(0, self._due - 1)
            try:
                self._take_result(event)
            except SceneError as error:
                facts = {"code": error.code, "message": error.message, "advice": error.advice}
                event = {"event": "failed", "job": job, **facts}
            self._open.pop(job or "", None)
        elif kind in ("failed", "cancelled"):
            self._open.pop(job or "", None)
            if event.get("code") in ("WORKER_DIED", "WORKER_KILLED"):
                self._maps.clear()
                self._due = 0
                on_cpu = self._requests.get(job or "", ("", {}))[1].get("device") == "cpu"
                event["offers"] = [{}] if on_cpu else [{}, {"device": "cpu"}]
            elif not mine:
                self._due = max(0, self._due - 1)
            if event.get("code") == "JOB_UNKNOWN":
                self._maps = {key: of for key, of in self._maps.items() if of[0] != job}
            if kind == "cancelled":
                self._requests.pop(job or "", None)
        return event

    def _take_result(self, event: Event) -> None:
        """Change the scene by a result."""
        change = {"detect": self._added, "threshold": self._moved, "compare": self._compared}.get(event.get("kind", ""))
        if change is not None and event.get("detections"):
            event["nodes"] = change(event)

    def _added(self, event: Event) -> list[results.ResultNodes]:
        """Add the nodes of a detection."""
        job = event["job"]
        volume_id, request = self._open[job]
        self._requests.pop(job, None)
        added = []
        for row in event["detections"]:
            nodes = results.add_result(
                self._scene.GetNodeByID(volume_id), _result(row, event["affine"]), bool(request.get("one_segment"))
            )
            self._maps[nodes.map.GetID()] = (job, row["model"])
            added.append(nodes)
        return added

    def _moved(self, event: Event) -> list[results.ResultNodes]:
        """Change the nodes of a result whose threshold was moved; one that has left the scene meanwhile is
        passed over.
        """
        changed = []
        for row in event["detections"]:
            map_node = self._map_of(event["job"], row["model"])
            if map_node is not None:
                changed.append(results.change_threshold(map_node, _result(row, event["affine"]), self.history))
        return changed

    def _compared(self, event: Event) -> list[results.ResultNodes]:
        """Write what a comparison gave into findings, table, chart and agreement."""
        name, mask = self._references.pop(event["job"], ("", None))
        changed = []
        for row in event["detections"]:
            map_node = self._map_of(event["job"], row["model"])
            if map_node is None or mask is None:
                continue
            changed.append(results.change_threshold(map_node, _result(row, event["affine"]), self.history))
            comparison.add_to_table(map_node, name, row["metrics"])
            comparison.add_curve(map_node, row["curve"]["threshold"], row["curve"]["dice"])
            comparison.show_agreement(map_node, row["mask"], mask)
        return changed

    def _map_of(self, job: str, model: str) -> Any:
        """Return the map node of a job's model, or None when it has left the scene."""
        for map_id, of in self._maps.items():
            if of == (job, model):
                return self._scene.GetNodeByID(map_id)
        return None

    def can_undo(self, map_node: Any, target: Any = None) -> bool:
        """Return whether ``undo`` would find a state to go back to."""
        return self._last_changed(map_node, target) is not None

    def undo(self, map_node: Any, target: Any = None) -> bool:
        """Take back what was done last: a threshold that was moved, or accepted findings that were sent to ``target``.
        False where nothing was kept. The worker is told, so that a comparison counts what is shown.

        Raises
        ------
        SceneError
            EDITED_SINCE when somebody has edited the segmentation meanwhile.
        """
        last = self._last_changed(map_node, target)
        if last is None:
            return False
        if last is target and last is not results.nodes_of(map_node).segmentation:
            self.history.undo(target)
            return True
        results.undo(map_node, self.history)
        self._maps.pop(map_node.GetID(), None)
        return True

    def _last_changed(self, map_node: Any, target: Any) -> Any:
        """Return a result's segmentation or the target of its accepted findings: what was changed last, or None."""
        own = results.nodes_of(map_node).segmentation if results.is_map(map_node) else None
        return self.history.last([own, target])


def _result(row: dict[str, Any], affine: np.ndarray) -> results.Result:
    """Return one row of a ``result`` event as what the scene code takes."""
    return results.Result(
        model=row["model"],
        map=row.get("map"),
        mask=row["mask"],
        affine=affine,
        threshold=row["threshold"],
        operating_point=row.get("operating_point") or "",
        origin=row.get("origin") or "",
        findings=row.get("findings") or [],
        summary=row.get("summary") or {},
        reconstruction=row.get("reconstruction"),
        residual=row.get("residual"),
    )
