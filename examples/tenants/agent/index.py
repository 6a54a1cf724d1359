"""An agent at work: a plan that a model generated is run call by call, with a person in between.

The plan is data. Each call names its tool, its arguments, and the name its result gets; "$name" in
an argument stands for an earlier result. The order of calls, their number and their tools are known
only at run time, and still each is a durable step.
"""

from tools import NEEDS_APPROVAL, NEEDS_DOCUMENTS, TOOLS

from dynamic_workflows import NonRetryableError, WorkflowEntrypoint


def checked(plan: list) -> list:
    """The plan, if it uses only known tools and only results that exist by then."""
    known = set()
    for call in plan:
        if call["tool"] not in TOOLS:
            raise NonRetryableError(f"the plan asks for a tool that is not there: {call['tool']}")
        missing = references(call["arguments"]) - known
        if missing:
            raise NonRetryableError(f"{call['as']} uses {sorted(missing)} before it is there")
        known.add(call["as"])
    return plan


def references(value) -> set:
    """The names of earlier results that the arguments mention."""
    if isinstance(value, str):
        return {value[1:]} if value.startswith("$") else set()
    if isinstance(value, dict):
        value = list(value.values())
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def resolved(value, results: dict):
    """The arguments with earlier results in place of their names."""
    if isinstance(value, str) and value.startswith("$"):
        return results[value[1:]]
    if isinstance(value, dict):
        return {name: resolved(part, results) for name, part in value.items()}
    return [resolved(part, results) for part in value] if isinstance(value, list) else value


class TenantWorkflow(WorkflowEntrypoint):
    async def run(self, event, step):
        goal, documents = event.payload["goal"], event.payload["documents"]
        plan = await step.do("check the plan", lambda: checked(event.payload["plan"]))
        results = {}
        for call in plan:
            arguments = resolved(call["arguments"], results)
            if call["tool"] in NEEDS_APPROVAL:
                answer = await step.wait_for_event(
                    f"may I {call['tool']}?", type="approval", timeout=self.env.APPROVAL_TIMEOUT
                )
                if not answer.payload["approved"]:
                    return {"goal": goal, "stopped_at": call["as"], "by": answer.payload["by"]}
            if call["tool"] in NEEDS_DOCUMENTS:
                arguments["documents"] = documents

            async def use_tool(ctx, call=call, arguments=arguments):
                return TOOLS[call["tool"]](**arguments)

            results[call["as"]] = await step.do(f"{call['tool']}: {call['as']}", use_tool)
        return {"goal": goal, "calls": len(plan), "answer": results[plan[-1]["as"]]}
