"""Our slices in one zone: asks for them, lists them, deletes them until none is left."""

import json
import time
from collections.abc import Sequence

from moe_parity.errors import UserError
from moe_parity.launch import tpu_requests, tpu_states
from moe_parity.launch.commands import Command, CommandError, Shell, say
from moe_parity.launch.exit_codes import START_AGAIN
from moe_parity.launch.tpu_requests import Request
from moe_parity.launch.tpu_states import Held

PAUSE = 10.0  # seconds between two looks at what is being deleted
PATIENCE = 900.0  # seconds after which a deletion counts as refused
WATCH_PAUSE = 60.0
MOST_UNANSWERED = 30  # looks of a watch in a row
MOST_REFUSALS = 3  # requests in a row that failed without ever running


class Slices:
  """The slices of one API in one zone of one project."""

  def __init__(self, shell: Shell, api: str, project: str, zone: str):
    self.shell, self._api, self._project, self._zone = shell, api, project, zone

  def listing(self) -> list[Command]:
    """The commands that list them."""
    return tpu_requests.listing(self._api, self._project, self._zone)

  def held(self) -> list[Held]:
    """What is listed now; an API that the project has not enabled has none.

    Raises:
      CommandError: gcloud could not say.
    """
    answers = []
    for line in self.listing():
      result = self.shell.ask(line)
      if result.code:
        if "has not been used in project" in result.err:
          return []
        raise CommandError(line, result)
      answers.append(json.loads(result.out or "[]"))
    return tpu_states.read(self._api, answers)

  def of(self, study: str) -> list[Held]:
    """The slices of one study."""
    return [held for held in self.held() if held.study == study]

  def ask_for(self, requests: Sequence[Request]) -> None:
    """Asks for the slices that are not there; those that are over make room first.

    Whatever goes wrong, also Ctrl-C, what this call asked for is deleted again.

    Raises:
      UserError: the name is that of a study in another folder, whose slices are there.
    """
    there = {held.name: held for held in self.of(requests[0].labels[tpu_requests.LABEL])}
    place = requests[0].labels[tpu_requests.PLACE]
    if others := [held for held in there.values() if held.place not in ("", place)]:
      raise UserError(
        f"{others[0].name} is a slice of {others[0].owner or 'someone'} for a study of the same"
        " name in another --workdir; give --name"
      )
    over = [r.name for r in requests if r.name in there and tpu_states.is_over(there[r.name])]
    self.remove(over)
    asked: list[str] = []
    try:
      for request in requests:
        if request.name in there and request.name not in over:
          say(f"{request.name}: there already, {tpu_states.meaning(there[request.name].state)}")
          continue
        asked.append(request.name)
        for line in tpu_requests.create(request):
          self.shell.run(line)
        say(f"{request.name}: asked for")
    except BaseException:
      if asked:
        say(f"not all could be asked for; deleting {', '.join(asked)}")
        self.remove(asked)
      raise

  def remove(self, names: Sequence[str]) -> None:
    """Deletes slices and waits until they are gone.

    Raises:
      UserError: some are still there; they are named, for they may cost money.
    """
    if not names:
      return
    refused: dict[str, str] = {}
    for name in names:
      for line in tpu_requests.delete(name, self._api, self._project, self._zone):
        try:
          self.shell.run(line)
        except CommandError as error:
          if "not found" not in error.result.err.lower():
            refused[name] = error.result.why
    if self.shell.dry_run:
      return
    deadline = time.monotonic() + PATIENCE
    left = self._left(names)
    while left and not refused and time.monotonic() < deadline:
      time.sleep(PAUSE)
      left = self._left(names)
    if left:
      reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
      raise UserError(
        f"still there, and perhaps paid for: {', '.join(left)} ({reasons or 'no reason given'});"
        " delete them in the console, or run this again"
      )

  def _left(self, names: Sequence[str]) -> list[str]:
    return [held.name for held in self.held() if held.name in names]

  def ssh(self, name: str, host: str, line: str) -> list[Command]:
    """The commands that open a shell on hosts of a slice, or run a line there."""
    where = (self._api, self._project, self._zone)
    if self._api == "tpu":
      return [tpu_requests.ssh(name, *where, host, line)]
    listing = tpu_requests.hosts_of(name, self._project, self._zone)
    result = self.shell.ask(listing)
    if result.code:
      raise CommandError(listing, result)
    hosts = sorted(result.out.split())
    if host != "all" and (not host.isdigit() or int(host) >= len(hosts)):
      raise UserError(f"--host={host}: {name} has {len(hosts)} hosts; use 0 to {len(hosts) - 1}")
    chosen = hosts if host == "all" else [hosts[int(host)]]
    return [tpu_requests.ssh(machine, *where, host, line) for machine in chosen]

  def _looked_at(self, study: str) -> list[Held]:
    """`of` for a watch of many hours: a look that gcloud does not answer is repeated.

    Raises:
      CommandError: too many in a row were not answered; the slices run on.
    """
    for left in range(MOST_UNANSWERED - 1, 0, -1):
      try:
        return self.of(study)
      except CommandError as error:
        say(f"not answered ({error.result.why}); looks again, at most {left} times")
        time.sleep(WATCH_PAUSE)
    return self.of(study)

  def watch(self, requests: Sequence[Request]) -> int:
    """Asks again for slices that were taken away, until every slice has ended by itself.

    A slice whose worker is done deletes itself, so what is not listed any more is done. Ctrl-C ends
    the watching; the slices run on.

    Raises:
      UserError: a request was refused again and again; all slices are deleted.
    """
    study = requests[0].labels[tpu_requests.LABEL]
    expires = int(requests[0].labels["expires"])
    refusals = {request.name: 0 for request in requests}
    while held := self._looked_at(study):
      for one in held:
        refusals[one.name] = {"ACTIVE": 0, "FAILED": refusals.get(one.name, 0) + 1}.get(
          one.state, refusals.get(one.name, 0)
        )
      if worst := [name for name, count in refusals.items() if count >= MOST_REFUSALS]:
        self.remove([one.name for one in held])
        raise UserError(
          f"{', '.join(worst)}: refused {MOST_REFUSALS} times in a row; 'gcloud compute tpus"
          " queued-resources describe' says why. All slices of the study are deleted"
        )
      if time.time() > expires:
        self.remove([one.name for one in held])
        say("the time is over; the slices are deleted. Run the same 'up' again to resume")
        return START_AGAIN
      over = {one.name for one in held if tpu_states.is_over(one)}
      if over:
        say(f"taken away: {', '.join(sorted(over))}")
        self.ask_for([request for request in requests if request.name in over])
      time.sleep(WATCH_PAUSE)
    say("no slice is left: every worker has ended; the study's folder says how")
    return 0
