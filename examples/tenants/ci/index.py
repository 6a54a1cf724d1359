"""A pipeline that the repository defines for itself: jobs and their order come with the push."""

import asyncio
import graphlib
import tomllib

from jobs import KINDS

from dynamic_workflows import NonRetryableError, WorkflowEntrypoint


def read(text: str) -> dict:
    """The jobs of a pipeline file, each with what it needs; refuses what could never run."""
    jobs = tomllib.loads(text)["jobs"]
    for name, job in jobs.items():
        job.setdefault("needs", [])
        unknown = [other for other in job["needs"] if other not in jobs]
        if job["run"] not in KINDS or unknown:
            raise NonRetryableError(f"job {name} asks for {unknown or job['run']}")
    try:
        graphlib.TopologicalSorter({n: job["needs"] for n, job in jobs.items()}).prepare()
    except graphlib.CycleError as error:
        raise NonRetryableError(f"jobs wait for each other: {error.args[1]}") from None
    return jobs


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        files = event.payload["files"]
        jobs = await step.do("read pipeline.toml", lambda: read(files["pipeline.toml"]))
        running = {}

        async def finish(name):
            """The job's result, once what it needs has finished; starts everything at most once."""
            await asyncio.gather(*(running[other] for other in jobs[name]["needs"]))
            job = jobs[name]
            retries = {"limit": job.get("retries", 0), "delay": self.env.RETRY_DELAY}

            async def work(ctx):
                return KINDS[job["run"]](job, files, ctx.attempt)

            return await step.do(name, work, config={"retries": retries})

        async with asyncio.TaskGroup() as group:
            for name in graphlib.TopologicalSorter(
                {name: job["needs"] for name, job in jobs.items()}
            ).static_order():
                running[name] = group.create_task(finish(name))
        results = {name: task.result() for name, task in running.items()}
        return {
            "commit": event.payload["commit"],
            "jobs": sorted(results),
            "checks": sum(len(result.get("passed", [])) for result in results.values()),
            "remarks": [r for result in results.values() for r in result.get("remarks", [])],
            "artifact": results["build"]["sha256"],
            "notes": results["release"]["text"],
        }
