"""Three replicas behind HAProxy, killed and scaled under load: how many requests fail, and how many are answered.

    python -m benchmarks.replicas [--docker visionpool:0.1.0-cpu] [--seconds 10] [--kills 3]

Replicas are processes, each at an address of its own; with --docker, containers of that image, on the daemon that DOCKER_HOST
names (scripts/docker-daemon). HAProxy has the configuration of examples/haproxy, and finds them by a name. Six ways to ask
go on all the time, and each answer is held against its picture:

    our clients, with their retries, over HTTP and gRPC through HAProxy, and over gRPC without it (dns:///, round robin)
    httpx and grpcio alone, the same three ways

Replicas on one machine share its cores, so that real models would not become faster: here a picture takes --latency ms of
sleep, two at a time, as on an accelerator. That answers a second grow with the replicas says something of the balancing, and
nothing of the speed of inference. Ends with status 1 where one of our clients' requests failed, or a replica that was told to
stop did not end with 0.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.balanced import report
from benchmarks.balanced.callers import PATIENT
from benchmarks.balanced.stage import Stage, stage

STEADY = "3 replicas"


def play(on: Stage, seconds: float, kills: int) -> None:
    """1 -> 3 -> 1, with one of three told to stop, and one killed, so many times, and each replaced."""
    with on.phase("1 replica"):
        time.sleep(seconds)
    with on.phase("1 to 3"):
        on.grow(2)
        time.sleep(seconds)
    with on.phase(STEADY):
        time.sleep(seconds)
    with on.phase("one of 3 is told to stop"):
        on.stop()
        time.sleep(seconds / 2)
    with on.phase("and replaced"):
        on.grow(1)
        time.sleep(seconds)
    for _ in range(kills):
        with on.phase("one of 3 is killed"):
            on.kill()
            time.sleep(seconds)
        with on.phase("and replaced"):
            on.grow(1)
            time.sleep(seconds)
    with on.phase("3 to 1"):
        on.stop(2)
        time.sleep(seconds / 2)
    with on.phase("1 replica again"):
        time.sleep(seconds)


def show(on: Stage) -> int:
    """Prints the tables. 1 where something went wrong."""
    outcomes = list(on.load.outcomes)
    there = next(phase for phase in on.phases if phase.what == STEADY)
    steady = report.rate(outcomes, there.start, there.end)
    print("\n".join(report.phases(outcomes, on.phases, steady)), end="\n\n")
    print("\n".join(report.around(outcomes, on.events, steady)), end="\n\n")
    print("\n".join(report.by_way(outcomes)), end="\n\n")
    lost = len(report.failed(outcomes, PATIENT))
    stopped = [status for status in on.statuses if status]
    print(
        f"with retries, {lost} requests failed; of {len(on.statuses)} told to stop, {len(stopped)} ended with other than 0"
    )
    return 1 if lost or stopped else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docker", metavar="IMAGE", help="replicas are containers of this image")
    parser.add_argument("--seconds", type=float, default=10, help="of each phase")
    parser.add_argument("--kills", type=int, default=3, help="how often a replica is killed")
    parser.add_argument("--each", type=int, default=4, help="requests at a time, for each way to ask")
    parser.add_argument("--latency", type=float, default=40, help="ms that a picture takes")
    asked = parser.parse_args()
    what = f"containers of {asked.docker}" if asked.docker else "processes"
    print(
        f"replicas: {what}; {asked.each} requests at a time by each of 6 ways, {asked.latency:g} ms a picture\n",
        flush=True,
    )
    with stage(each=asked.each, latency_ms=asked.latency, image=asked.docker) as on:
        play(on, asked.seconds, asked.kills)
    return show(on)


if __name__ == "__main__":
    sys.exit(main())
