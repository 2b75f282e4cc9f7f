"""What a run leaves to be used: the shared model and clients' own, of its end or of a round with a checkpoint."""

from __future__ import annotations

from pathlib import Path

from weft.config import RunConfig
from weft.core.files import replaced_folder, write_atomic
from weft.core.types import ServerState, Tensors
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory
from weft.launch.paths import kind_of
from weft.launch.personal_models import PersonalModels, result_of, words_of
from weft.launch.tokenizer import with_tokenizer
from weft.models.adapters import save_model
from weft.models.resident import Resident
from weft.runs.layout import RunDir


def has_shared(plan: Plan) -> bool:
    """Say whether there is one model of all clients."""
    algorithm = plan.algorithm
    return algorithm.choice is None and (algorithm.shares or algorithm.personal is None)


def shared_of(config: RunConfig, plan: Plan, model: Resident, state: ServerState) -> Tensors:
    """Return all that the shared adapter or model consists of, without what is each client's own."""
    shared = result_of(state, model.initial)
    if config.private_tokens:
        return {name: value for name, value in shared.items() if plan.sharing.travels(name)}
    return shared


def shared_names(plan: Plan, model: Resident) -> list[str]:
    """Return the trained tensors that travel; ConfigError where none does."""
    if names := [name for name in model.masters if plan.sharing.travels(name)]:
        return names
    raise ConfigError(
        f"share ({', '.join(plan.sharing.patterns)}) fits no trained tensor, such as {next(iter(model.masters))}: "
        "write a part of a name, or a glob."
    )


def write_weights(config: RunConfig, model: Resident, values: Tensors, folder: Path) -> Path:
    """Write an adapter or model, or the prompt that the values say, into a folder of the run or of a client.

    While it is written, and after a failure, there is no folder that looks like a whole result.

    Returns:
        The folder of the adapter or model, or the file of the prompt.
    """
    if config.finds_words:
        model.load(values)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "prompt.txt", words_of(model))
        return folder / "prompt.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with replaced_folder(folder / kind_of(config)) as whole:
        save_model(model.writable, model.tokenizer, values, whole)
    return folder / kind_of(config)


def write_round(config: RunConfig, run: RunDir, state: ServerState, client: str | None, folder: Path) -> None:
    """Write the weights of a checkpoint as the run itself would, had it ended there.

    Args:
        config: of the run.
        run: its directory; nothing is written there.
        state: of the checkpoint.
        client: whose, where each client has its own.
        folder: where the adapter, the model or the prompt is written.

    Raises:
        ConfigError: a client must be named, or there is no such client, or none has a model of its own.
    """
    config = with_tokenizer(config, run.path / "tokenizer")
    builder = ClientBuilder(config)
    plan = builder.plan
    if client is None and not has_shared(plan):
        raise ConfigError(f"Every client of '{run.path}' has its own model: name one with --client NAME.")
    model = builder.model
    if client is None:
        write_weights(config, model, shared_of(config, plan, model, state), folder)
        return
    if config.runtime == "nvflare":
        raise ConfigError("The models of sites stay with them: leave out --client for the shared one.")
    population = builder.read(DiskMemory(run))
    host, _ = builder.host(reference=run.reference_file)
    personal = PersonalModels(plan, state, model, population, host.evaluator)
    if not personal.exist:
        raise ConfigError(f"The clients of '{run.path}' have no models of their own: leave out --client.")
    if client not in population.trained.names:
        raise ConfigError(f"There is no client '{client}' in '{run.path}': {', '.join(population.trained.names[:20])}.")
    personal.put(population.trained.find(client))
    write_weights(config, model, personal.whole(), folder)
