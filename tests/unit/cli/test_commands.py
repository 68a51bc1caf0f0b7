"""Commands on a cluster in memory: what they write, print and refuse."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import typer

from engineroom.api import ANNOTATION_DRAIN, ANNOTATION_DRAIN_PODS
from engineroom.cli.commands.explain import explain
from engineroom.cli.commands.get import get
from engineroom.cli.commands.pools.drain import drain, pod_progress, pool_progress
from engineroom.cli.commands.pools.patch import merge, report
from engineroom.cli.commands.pools.pause import Direction, pause
from engineroom.cli.commands.pools.resume import resume
from engineroom.cli.commands.pools.scale import scale
from engineroom.cli.commands.pools.top import TopRows, top
from engineroom.cli.commands.status import status
from engineroom.cli.commands.version import version
from engineroom.cli.connections.parsing import (
    ANNOTATION_DELETION_COST,
    DRAINED_COST,
    parse_pod,
    parse_pool,
)
from engineroom.cli.errors import (
    ForbiddenError,
    NotFoundError,
    TimedOutError,
    UnreachableError,
    UsageError,
)
from engineroom.cli.views.output_formats import OutputFormat, ReportFormat

if TYPE_CHECKING:
    from collections.abc import Callable

    from engineroom.cli.app.context import CommandContext

from .memory import MemoryCluster, Trial
from .samples import BUSY, pod, pool

AUTO = {"minReplicas": 0, "maxReplicas": 10}


def test_get_lists_the_namespace_and_takes_the_kind_in_all_its_spellings() -> None:
    cluster = MemoryCluster(pool("mail"), pool("far", "other"))
    for names in (None, ["pools"], ["wp"], ["workerpools"]):
        trial = Trial(cluster)
        get(trial.context, names)
        assert [line.split()[0] for line in trial.out.splitlines()] == ["NAME", "mail"]
    trial = Trial(cluster)
    get(trial.context, None, all_namespaces=True, output=OutputFormat.NAME)
    assert trial.out == "workerpool.engineroom.dev/mail\nworkerpool.engineroom.dev/far\n".replace(
        "workerpool.", "workerpools."
    )


def test_get_prints_objects_as_the_api_has_them_without_managed_fields() -> None:
    trial = Trial(MemoryCluster(pool("mail"), pool("other")))
    get(trial.context, ["wp/mail"], output=OutputFormat.JSON)
    document = json.loads(trial.out)
    assert document["kind"] == "WorkerPool"
    assert "managedFields" not in document["metadata"]
    trial = Trial(trial.cluster)
    get(trial.context, ["mail", "other"], output=OutputFormat.JSON)
    assert [item["metadata"]["name"] for item in json.loads(trial.out)["items"]] == [
        "mail",
        "other",
    ]


def test_get_of_nothing_says_so_beside_the_answer() -> None:
    trial = Trial(MemoryCluster())
    get(trial.context, None)
    assert (trial.out, trial.err) == ("", "no pools in namespace default\n")


def test_get_refuses_what_excludes_each_other() -> None:
    context = Trial(MemoryCluster(pool()), namespace="default").context
    with pytest.raises(UsageError, match="exclude each other"):
        get(context, ["mail"], all_namespaces=True)
    with pytest.raises(UsageError, match="--namespace and --all-namespaces"):
        get(context, None, all_namespaces=True)
    with pytest.raises(UsageError, match="names no pool"):
        get(context, ["deployment/mail"])
    with pytest.raises(NotFoundError):
        get(context, ["nobody"])


def test_get_by_label() -> None:
    cluster = MemoryCluster(pool("a", metadata={"labels": {"team": "x"}}), pool("b"))
    trial = Trial(cluster)
    get(trial.context, None, selector="team=x", output=OutputFormat.NAME)
    assert trial.out == "workerpools.engineroom.dev/a\n"


def test_explain_in_both_shapes() -> None:
    trial = Trial(MemoryCluster(pool(autoscaling=AUTO, status={}), pods=[pod()]))
    explain(trial.context, ["mail"])
    assert trial.out.startswith("default/mail: 7 pods, 7 ready")
    trial = Trial(trial.cluster)
    explain(trial.context, ["mail"], output=ReportFormat.JSON)
    assert json.loads(trial.out)["pods"][0]["name"] == "mail-1"


def test_scale_by_hand_goes_through_the_scale_subresource_alone() -> None:
    trial = Trial(MemoryCluster(pool(replicas=2)))
    scale(trial.context, "mail", 5)
    assert trial.cluster.writes == [("scale", "default/mail", 5)]
    assert trial.out == "workerpool default/mail scaled to 5 pods (was 2)\n"


def test_scale_of_an_autoscaled_pool_explains_and_offers_the_range() -> None:
    trial = Trial(MemoryCluster(pool(autoscaling=AUTO)))
    with pytest.raises(UsageError) as caught:
        scale(trial.context, "mail", 5)
    assert caught.value.what == "default/mail is autoscaled between 0 and 10 pods"
    assert "`engineroom scale mail -n default --min 5` for at least 5 pods" in caught.value.fix
    assert trial.cluster.writes == []


def test_scale_of_the_range_patches_only_what_was_said() -> None:
    trial = Trial(MemoryCluster(pool(autoscaling=AUTO)))
    scale(trial.context, "mail", maximum=20)
    assert trial.cluster.writes == [
        ("patch", "default/mail", {"spec": {"autoscaling": {"maxReplicas": 20}}})
    ]
    assert trial.out == "workerpool default/mail scales between 0 and 20 pods (was 0 to 10)\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "say either a number"),
        ({"replicas": 1, "minimum": 1}, "say either a number"),
        ({"minimum": 11}, "a smallest size of 11 is above the largest of 10"),
        ({"replicas": 1, "dry_run": "client"}, "--dry-run=client is unknown"),
    ],
)
def test_scale_refuses_what_makes_no_sense(arguments: dict[str, object], expected: str) -> None:
    trial = Trial(MemoryCluster(pool(autoscaling=AUTO)))
    with pytest.raises(UsageError, match=expected):
        scale(trial.context, "mail", **arguments)  # type: ignore[arg-type]
    assert trial.cluster.writes == []


def test_the_range_of_a_pool_sized_by_hand_is_refused() -> None:
    with pytest.raises(UsageError, match="sized by hand"):
        scale(Trial(MemoryCluster(pool())).context, "mail", minimum=1)


def test_scale_to_zero_asks_who_can_answer_and_nobody_else() -> None:
    refused = Trial(MemoryCluster(pool(replicas=1)), answer=False)
    with pytest.raises(typer.Abort):
        scale(refused.context, "mail", 0)
    assert refused.cluster.writes == []
    assert refused.questions == ["Leave default/mail without any worker? Its jobs will wait."]
    for trial, yes in (
        (Trial(MemoryCluster(pool(replicas=1)), answer=True), False),
        (Trial(MemoryCluster(pool(replicas=1)), answer=False), True),
    ):
        scale(trial.context, "mail", 0, yes=yes)
        assert trial.cluster.writes == [("scale", "default/mail", 0)]
    unasked = Trial(MemoryCluster(pool(replicas=1)))
    with pytest.raises(UsageError, match="add --yes"):
        scale(unasked.context, "mail", 0)
    assert unasked.cluster.writes == []


@pytest.mark.parametrize(
    ("direction", "value"),
    [(Direction.ALL, "All"), (Direction.IN, "ScaleIn"), (Direction.OUT, "ScaleOut")],
)
def test_pause_and_resume(direction: Direction, value: str) -> None:
    cluster = MemoryCluster(pool(autoscaling=AUTO, suspend=True))
    pause(Trial(cluster).context, "mail", direction)
    patch = {"spec": {"autoscaling": {"pause": value}}}
    assert cluster.writes == [("patch", "default/mail", patch)]
    again = Trial(cluster)
    pause(again.context, "mail", direction)
    assert "is already paused" in again.out
    resumed = Trial(cluster)
    resume(resumed.context, "mail")
    assert resumed.out == "workerpool default/mail resumed: it takes jobs and scales again\n"
    assert cluster.writes[1:] == [
        ("patch", "default/mail", {"spec": {"suspend": False, "autoscaling": {"pause": "None"}}})
    ]
    idle = Trial(cluster)
    resume(idle.context, "mail")
    assert idle.out == "workerpool default/mail is neither paused nor suspended\n"
    assert len(cluster.writes) == 2


def test_pause_of_a_pool_sized_by_hand_names_what_does_fit() -> None:
    with pytest.raises(UsageError) as caught:
        pause(Trial(MemoryCluster(pool())).context, "mail")
    assert "`engineroom drain mail -n default`" in caught.value.fix


def test_a_rehearsal_shows_the_difference_and_writes_nothing() -> None:
    cluster = MemoryCluster(pool(autoscaling=AUTO, replicas=None))
    runs: tuple[Callable[[CommandContext], None], ...] = (
        lambda context: pause(context, "mail", dry_run="server"),
        lambda context: scale(context, "mail", maximum=20, dry_run="server"),
        lambda context: drain(context, "mail", dry_run="server"),
    )
    for run in runs:
        trial = Trial(cluster)
        run(trial.context)
        assert "+++ workerpool default/mail (then)" in trial.out
        assert trial.err == "rehearsed by the server; nothing was changed\n"
    assert cluster.writes == []


def test_a_rehearsal_tells_no_secret_that_stands_beside_what_changes() -> None:
    container = {"name": "worker", "env": [{"name": "DB_PASSWORD", "value": "hunter2"}]}
    template = {"spec": {"containers": [container]}}
    trial = Trial(MemoryCluster(pool(replicas=1, template=template)))
    pool_change = {"spec": {"template": {"spec": {"containers": [{**container, "env": []}]}}}}
    found = trial.context.cluster.pool("default", "mail")
    report(
        trial.context, found, merge(found, pool_change), "changed", OutputFormat.TABLE, dry_run=True
    )
    assert "DB_PASSWORD" in trial.out
    assert "hunter2" not in trial.out


def test_a_change_in_other_shapes() -> None:
    cluster = MemoryCluster(pool(autoscaling=AUTO))
    trial = Trial(cluster)
    pause(trial.context, "mail", output=OutputFormat.NAME)
    assert trial.out == "workerpools.engineroom.dev/mail\n"
    trial = Trial(cluster)
    pause(trial.context, "mail", Direction.IN, output=OutputFormat.JSON)
    assert json.loads(trial.out)["spec"]["autoscaling"]["pause"] == "ScaleIn"


def test_a_change_under_gitops_is_told_that_it_may_not_last() -> None:
    marked = pool(
        autoscaling=AUTO, metadata={"annotations": {"argocd.argoproj.io/tracking-id": "app:x"}}
    )
    trial = Trial(MemoryCluster(marked))
    pause(trial.context, "mail")
    assert trial.err.startswith("Argo CD manages this pool and may put its own value back")


def played(*steps: tuple[bool, int, int]) -> MemoryCluster:
    """A pool whose operator, look by look, has (answered, busy workers, running jobs)."""
    cluster = MemoryCluster(pool(autoscaling=AUTO, status={}))
    left = list(steps)

    def work(cluster: MemoryCluster) -> None:
        if not cluster.writes:
            return
        document = cluster.documents["default", "mail"]
        answered, busy, running = left.pop(0) if len(left) > 1 else left[0]
        generation = document["metadata"]["generation"]
        document["status"]["observedGeneration"] = generation if answered else generation - 1
        document["status"]["busyWorkers"] = busy
        document["status"]["queues"] = [{"name": "default", "depth": 5, "running": running}]

    cluster.before_read = work
    return cluster


def test_drain_waits_until_the_operator_answered_and_nobody_holds_a_job() -> None:
    cluster = played(
        (False, 0, 0), (True, 3, 3), (True, 0, 1), (True, 0, 0), (True, 1, 0), (True, 0, 0)
    )
    trial = Trial(cluster)
    drain(trial.context, "mail", yes=True)
    assert cluster.writes == [("patch", "default/mail", {"spec": {"suspend": True}})]
    assert (
        trial.out
        == """\
workerpool default/mail suspended: its workers take no more jobs
workerpool default/mail is drained: no worker holds a job; \
`engineroom resume mail -n default` lets it work again
"""
    )
    assert [line.partition(": ")[2] for line in trial.err.splitlines()] == [
        "waiting for the operator to see it",
        "3 of 7 workers hold a job",
        "1 of 7 workers hold a job",
        "0 of 7 workers hold a job",
        "1 of 7 workers hold a job",
        "0 of 7 workers hold a job",
    ]
    # Empty at 3 s, but a job taken in the last moment shows at 4 s; empty and quiet from 5 s on.
    assert trial.clock.monotonic() == 7.0


def test_drain_gives_up_when_told_to_and_says_how_to_go_on() -> None:
    trial = Trial(played((True, 2, 2)))
    with pytest.raises(TimedOutError) as caught:
        drain(trial.context, "mail", timeout="90s", yes=True)
    assert caught.value.what == "draining default/mail has not come to its end within 1m30s"
    assert caught.value.why == "2 of 7 workers hold a job"


def test_drain_without_waiting_and_of_a_suspended_pool() -> None:
    cluster = MemoryCluster(pool(autoscaling=AUTO))
    drain(Trial(cluster).context, "mail", wait=False, yes=True)
    again = Trial(cluster)
    drain(again.context, "mail", wait=False)
    assert again.out == "workerpool default/mail is already suspended\n"
    assert len(cluster.writes) == 1


def test_drain_survives_an_api_server_that_is_away_for_a_moment() -> None:
    cluster = played((True, 0, 0))
    inner, failures = cluster.before_read, iter([False, True, True, False])

    def flaky(cluster: MemoryCluster) -> None:
        if next(failures, False):
            raise UnreachableError("cannot reach the cluster at https://192.0.2.10:6443")
        inner(cluster)

    cluster.before_read = flaky
    trial = Trial(cluster)
    drain(trial.context, "mail", yes=True)
    assert "cannot reach the cluster" in trial.err
    assert "is drained" in trial.out


def test_drain_notices_that_somebody_resumed_the_pool() -> None:
    cluster = played((True, 2, 2))
    inner = cluster.before_read

    def resumed(cluster: MemoryCluster) -> None:
        inner(cluster)
        if cluster.writes:
            cluster.documents["default", "mail"]["spec"]["suspend"] = False

    cluster.before_read = resumed
    trial = Trial(cluster)
    with pytest.raises(TimedOutError, match="was resumed while it drained"):
        drain(trial.context, "mail", yes=True)


def test_drain_of_a_pod_marks_it_and_waits_until_it_is_gone() -> None:
    cluster = MemoryCluster(pool(status={}), pods=[pod("mail-1", annotations=dict(BUSY))])
    looks = iter(range(10))

    def work(cluster: MemoryCluster) -> None:
        if cluster.writes and next(looks) == 2:
            cluster.pod_documents = []

    cluster.before_read = work
    trial = Trial(cluster)
    drain(trial.context, "mail", "pod/mail-1", yes=True)
    assert cluster.writes == [("annotate", "mail-1", {"engineroom.dev/drain": "true"})]
    assert trial.out == (
        "pod default/mail-1 marked: it takes no more jobs\n"
        "pod default/mail-1 is gone: it holds no job\n"
    )


def test_drain_of_a_pod_of_another_pool_is_refused() -> None:
    cluster = MemoryCluster(pool(), pods=[pod("x", pool="other"), pod("y", pool="")])
    for name, why in (("x", "it belongs to other"), ("y", "it belongs to no pool")):
        with pytest.raises(UsageError) as caught:
            drain(Trial(cluster).context, "mail", name, yes=True)
        assert caught.value.why == why
    assert cluster.writes == []


def test_a_pod_is_called_back_by_whichever_way_it_was_asked() -> None:
    asked = {**BUSY, ANNOTATION_DRAIN: "true"}
    cluster = MemoryCluster(pool(), pods=[pod("mail-1", annotations=asked)])
    trial = Trial(cluster)
    resume(trial.context, "mail", "pod/mail-1")
    assert cluster.writes == [("annotate", "mail-1", {ANNOTATION_DRAIN: None})]
    assert trial.out == "pod default/mail-1 is called back: it takes jobs again\n"
    named = {"annotations": {ANNOTATION_DRAIN_PODS: "mail-1,mail-2"}}
    cluster = MemoryCluster(
        pool(metadata=named), pods=[pod("mail-1", annotations=dict(BUSY)), pod("mail-3")]
    )
    resume(Trial(cluster).context, "mail", "mail-1")
    patch = {"metadata": {"annotations": {ANNOTATION_DRAIN_PODS: "mail-2"}}}
    assert cluster.writes == [("patch", "default/mail", patch)]
    other = Trial(cluster)
    resume(other.context, "mail", "mail-3")
    assert "was not asked to leave" in other.out
    gone = {**asked, ANNOTATION_DELETION_COST: str(DRAINED_COST)}
    late = MemoryCluster(pool(), pods=[pod("mail-1", annotations=gone), pod("x", pool="other")])
    for name, why in (("mail-1", "on its way out"), ("x", "not of pool")):
        with pytest.raises(UsageError, match=why):
            resume(Trial(late).context, "mail", name)
    assert late.writes == []


def test_drain_asks_on_a_terminal() -> None:
    trial = Trial(MemoryCluster(pool(), pods=[pod()]), answer=False)
    for arguments in (("mail",), ("mail", "mail-1")):
        with pytest.raises(typer.Abort):
            drain(trial.context, *arguments)
    assert trial.questions == [
        "Stop default/mail from taking jobs until it is resumed?",
        "Drain pod mail-1 and let it go?",
    ]
    assert trial.cluster.writes == []


def test_drain_refuses_a_timeout_that_is_no_duration() -> None:
    with pytest.raises(UsageError, match="--timeout soon is no duration"):
        drain(Trial(MemoryCluster(pool())).context, "mail", timeout="soon")


def test_progress_believes_status_and_pods_together() -> None:
    idle = parse_pool(pool(status={"busyWorkers": 0, "queues": []}))
    assert pool_progress(idle, (parse_pod(pod(annotations=BUSY)),)).held == 1
    assert pool_progress(idle, (parse_pod(pod()),)).done
    assert pool_progress(parse_pool(pool()), ()).held is None
    before = parse_pod(pod())
    assert pod_progress(before, parse_pod(pod(uid="another"))).text == "gone"
    cost = {"controller.kubernetes.io/pod-deletion-cost": "-1000"}
    assert pod_progress(before, parse_pod(pod(annotations=cost))).done
    leaving = parse_pod(pod(deletionTimestamp="now", annotations=BUSY))
    assert not pod_progress(before, leaving).done


def test_status_ends_with_one_when_there_is_a_problem() -> None:
    trial = Trial(MemoryCluster())
    with pytest.raises(typer.Exit) as caught:
        status(trial.context, output=ReportFormat.JSON)
    assert caught.value.exit_code == 1
    assert json.loads(trial.out)["checks"][1]["summary"] == "no operator runs"


def test_status_falls_back_to_the_own_namespace_where_all_are_forbidden() -> None:
    class Narrow(MemoryCluster):
        def pools(self, namespace: str | None, selector: str | None = None):  # type: ignore[no-untyped-def]
            if namespace is None:
                raise ForbiddenError("no")
            return super().pools(namespace, selector)

    trial = Trial(Narrow(pool()))
    with pytest.raises(typer.Exit):
        status(trial.context, output=ReportFormat.JSON)
    assert json.loads(trial.out)["namespace"] == "default"


def test_top_of_pools_and_of_one_pools_workers() -> None:
    cluster = MemoryCluster(
        pool("mail", status={}), pool("web", status={}), pods=[pod("m"), pod("w", pool="web")]
    )
    trial = Trial(cluster)
    top(trial.context, output=ReportFormat.JSON)
    assert [pool["name"] for pool in json.loads(trial.out)["pools"]] == ["mail", "web"]
    trial = Trial(cluster)
    top(trial.context, TopRows.WORKERS, "web", output=ReportFormat.JSON)
    assert [worker["name"] for worker in json.loads(trial.out)["workers"]] == ["w"]
    with pytest.raises(UsageError):
        top(trial.context, TopRows.POOLS, "web")


def test_version_of_the_client_asks_no_cluster() -> None:
    trial = Trial(MemoryCluster())
    trial.context.connections.connect_cluster = lambda shared: pytest.fail("it connected")
    version(trial.context, client=True, output=ReportFormat.JSON)
    assert list(json.loads(trial.out)) == ["client"]


def test_version_names_what_is_not_there() -> None:
    trial = Trial(MemoryCluster())
    version(trial.context)
    assert trial.out.splitlines()[1:] == [
        "operator     not installed",
        "API          v1alpha1",
        "Kubernetes   v1.37.2 at https://192.0.2.10:6443",
    ]
