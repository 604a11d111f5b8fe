"""Every field that a config may set, with its default and unit.

A config file states decisions by changing some of them. What follows from them (shapes, tokens,
steps, learning rates) is derived by the planner after the command line has been read.
"""

from ml_collections import ConfigDict


def base() -> ConfigDict:
  """A complete config with an empty list of arms."""
  config = ConfigDict()
  config.name = "unnamed"
  config.seed = 0  # weights and drawn data of every arm that lists no seeds of its own
  config.budget = _budget()
  config.arms = ConfigDict()  # name -> dense_arm() or moe_arm()
  config.study = _study()
  config.data = _data()
  config.model = _model()
  config.mesh = _mesh()
  config.optimizer = _optimizer()
  config.train = _train()
  config.evaluation = _evaluation()
  config.finetuning = _finetuning()
  return config


def _budget() -> ConfigDict:
  """The resources that every arm shares: N, C and unique data D^."""
  budget = ConfigDict()
  budget.num_params = 0  # N: parameters without vocabulary matrices, in `convention`
  budget.train_flops = 0.0  # C; 0 derives it from dense_tokens
  budget.dense_tokens = 0  # tokens of the dense arm; 0 derives them from train_flops
  budget.unique_tokens = 0  # D^; 0 lets the scheme decide
  # unique | strict (D^ = the dense arm's tokens) | loose (2 epochs) | epochs
  budget.reuse = "strict"
  budget.epochs = 1.0  # passes over D^, for reuse="epochs"
  budget.seq_len = 256  # S, tokens of a sequence
  budget.convention = "paper"  # paper | paper_full | exact | executed: what N and C count
  budget.params_tolerance = 0.003  # largest |N - budget| / budget of an arm
  budget.flops_tolerance = 0.005  # likewise for C
  budget.batch_multiple = 1  # batches are rounded to a multiple of this many sequences
  budget.held_fixed = "compute"  # compute (C) | tokens (D: a sweep at fixed data, not at parity)
  return budget


def _study() -> ConfigDict:
  """Which arms a study derives and compares; see `study/methods/`."""
  study = ConfigDict()
  # As listed, or one of the paper's steps, which derive theirs from config.arms.dense and .moe:
  study.method = "arms"  # arms | architecture | activation_rate | data_reuse
  study.seeds = (0,)  # of every derived arm
  study.more_seeds = ()  # then also: the best activation rate, its neighbors, the dense arms
  study.activation_rates = ()  # N_a / N of the derived MoE arms
  study.compute_multiples = (2.0,)  # dense references, times C
  study.controls = True  # whether dense controls are trained: of the best rate's N_a, and
  study.small_multiples = (0.5, 0.25, 0.125)  # of these times N
  study.fixed_data = False  # whether to sweep at the dense arm's tokens as well
  study.sizes = ()  # further N to sweep, at the same tokens a parameter
  # Peak learning rates that every arm, reference and control tries with all its tokens; each is
  # then compared at its own best. () trains arms as they stand. See study/tuning.py.
  study.learning_rate_grid = ()
  study.tuning_seeds = (1000,)  # of the tries; compared runs have others
  study.grid_extensions = 1  # times the grid may grow at an end, for all arms, where one is best
  study.learning_rates = ()  # multiples of StepLaw's to check, for the best MoE arm and dense
  study.batches = ()  # likewise for its batch
  study.epochs = ()  # data_reuse: passes over the text, besides unique, loose (2) and strict
  # What an architecture search tries besides the templates; "" or () leaves a stage out.
  study.layouts = ("1dense+se", "1dense", "interleave+se", "interleave", "full+se", "full")
  study.gates = True  # whether to try raw and normalized gates
  study.granularities = (0.5, 2.0)  # times K, at constant K x d_expert
  study.aspect_ratios = ()  # zeta = d / L of the MoE
  study.total_ffn_ratios = ()  # mu, with each of them
  study.dense_aspect_ratios = ()
  study.dense_ffn_ratios = ()  # alpha = d_ffn / d of the dense arm
  return study


def _data() -> ConfigDict:
  """Where the text comes from, its tokens, and which of it is held out."""
  data = ConfigDict()
  data.source = "builtin"  # builtin | file | folder | pattern | a finished token store; several
  # with commas between; name=path says the domain; a path may have a scheme (gs://)
  data.tokenizer = "bytes"  # bytes | bpe:<vocab> | path of a tokenizer.json | store: the source's
  data.allow_lossy_tokenizer = False  # take ids that do not give all text back; BPC states the loss
  data.store = ""  # folder of the token store; "" is a folder of the cache named by its content
  data.held_out = ""  # hash:<share of documents> | works:<name>,<name> | source:<path>; "": the
  # built-in corpus's own split, hash:0.01 for others
  data.max_bad_records = 0  # unreadable records that may be skipped; the manifest counts them
  data.text_key = "text"  # fields of a record in .jsonl, .parquet and the like
  data.domain_key = "domain"
  data.source_key = "source"
  # A window holds several documents: may attention cross their ends? M counts it in full anyway.
  data.cross_documents = True
  data.weights = ""  # "prose=2,code=1": rows of each domain; "" takes domains as they come
  data.max_epochs = 0.0  # times any domain may be read; 0: a weighted one no more than the others
  # Which windows make up a unique-token budget, and their order. Each seed of an arm draws its own
  # (data.seed plus the arm's seed, so that all arms of a seed read the same text); with
  # draw_per_seed=False all read what data.seed names, and seeds vary initial weights alone.
  data.seed = 0
  data.draw_per_seed = True
  return data


def _model() -> ConfigDict:
  """What every arm's model computes, apart from its shape."""
  model = ConfigDict()
  model.position = "alibi"  # alibi | rope | none
  model.normalize_gates = False  # divide the chosen gates by their sum
  model.routed_scale = ""  # times the routed sum: a number | E/K | learned; "" is 1
  model.remat = "none"  # none | dots | layer: what the backward pass recomputes
  model.dtype = "float32"  # arithmetic of matrix products: float32 | bfloat16
  # blocks | cudnn | flash | splash; "": the platform's (planning/attention_choice.py)
  model.attention = ""
  model.attention_block = 512  # queries at a time; a block skips the keys after its end
  model.embedding_std = 0.02
  # 0 drops nothing; else assignments beyond this times the mean load of an expert are dropped.
  model.capacity_factor = 0.0
  model.balance_weight = 0.01  # times a loss that is 1 at perfect balance
  model.z_weight = 0.0  # times mean(logsumexp(router logits)^2)
  model.bias_update_rate = 0.0  # loss-free balancing step; 0 is off
  return model


def _mesh() -> ConfigDict:
  """Devices along each axis (`planning/mesh_sizes.py`). A run may be resumed on another mesh."""
  mesh = ConfigDict()
  # One of the three may be -1: all devices that the others leave. All 1 is a single device.
  mesh.data = 1  # replicas of the weights
  mesh.fsdp = 1  # weights and optimizer state are sharded over these
  mesh.expert = 1  # experts are sharded over these; the batch is, over all three
  # How tokens reach experts on other devices: all_to_all | ragged_all_to_all |
  # ragged_all_to_all_dedup | all_gather; "" is the platform's own.
  mesh.token_dispatch = ""
  return mesh


def _optimizer() -> ConfigDict:
  """AdamW, by the paper's Table 4."""
  optimizer = ConfigDict()
  optimizer.b1 = 0.9
  optimizer.b2 = 0.95
  optimizer.epsilon = 1e-8
  optimizer.weight_decay = 0.1
  optimizer.clip_norm = 1.0
  optimizer.final_learning_rate = 1e-5  # absolute, the same for every arm (the paper's Table 4)
  optimizer.warmup_steps = 2000  # never more than a tenth of a run
  return optimizer


def _train() -> ConfigDict:
  """How a run is executed and logged."""
  train = ConfigDict()
  train.micro_batch_sequences = 0  # sequences in memory at a time; 0 is the whole batch
  train.log_every = 10  # steps
  train.eval_every = 0  # steps between validation losses in training; 0 is only at the end
  train.eval_tokens = 16_384  # tokens of such a validation
  train.save_every = 200  # steps between checkpoints; the last step is always saved
  train.keep_checkpoints = 2
  return train


def _evaluation() -> ConfigDict:
  """How a trained model is scored."""
  evaluation = ConfigDict()
  evaluation.mode = "document"  # document (disjoint windows) | strided | packed
  evaluation.stride = 0  # tokens, for mode="strided"
  evaluation.max_tokens = 0  # whole documents up to about this many tokens; 0 is all
  evaluation.batch_sequences = 16
  # Held-out tokens whose experts are counted when an MoE run ends, for the report's page on what
  # experts specialize in: at most this many, beginnings of documents; 0 leaves it out.
  evaluation.routing_tokens = 16_384
  # How an MoE scores, untrained, with a part taken away: routed_removed | router_shuffled | top_1.
  evaluation.ablations = ("routed_removed", "router_shuffled", "top_1")
  return evaluation


def _finetuning() -> ConfigDict:
  """Supervised fine-tuning of every trained arm on the same chats, with a sweep of equal effort."""
  finetuning = ConfigDict()
  finetuning.data = ""  # files of chats, commas between | builtin; "" leaves fine-tuning out
  finetuning.format = ""  # messages | sharegpt | alpaca; "" is what a file's first record shows
  finetuning.ignored_keys = ()  # keys of a record that do not matter
  finetuning.duplicates = "refuse"  # a chat that is there twice: refuse | leave-out (and count)
  finetuning.too_long = "refuse"  # a chat longer than a row: refuse | leave-out (and count)
  finetuning.held_out = 0.1  # share of the chats for validation, chosen by hash of their content
  finetuning.template = ""  # JSON file that names special tokens; "": those of our vocabularies
  finetuning.batch_sequences = 8  # packed rows a step, the same for every arm
  # The candidates are all pairs of these; each arm keeps the one with the lowest validation loss.
  finetuning.learning_rates = (0.1, 0.3)  # times the arm's own pretraining peak
  finetuning.epochs = (2, 4)  # passes over the chats
  return finetuning


def dense_arm(**fields) -> ConfigDict:
  """A dense arm; what is 0 or "" is left to the solver.

  Raises:
    KeyError: a field that arms do not have.
  """
  return _arm("dense", layout="dense", **fields)


def moe_arm(activation_rate: float = 0.0, **fields) -> ConfigDict:
  """An MoE arm by its activation rate N_a / N, or by an explicit shape.

  Raises:
    KeyError: a field that arms do not have.
  """
  return _arm("moe", activation_rate=activation_rate, **fields)


def _arm(kind: str, **fields) -> ConfigDict:
  arm = ConfigDict()
  arm.kind = kind
  # Shape: integers, 0 leaves the choice to the solver.
  arm.layout = "1dense"  # dense | full | interleave | <n>dense | letters such as "DMMM"
  arm.num_layers = 0
  arm.d_model = 0
  arm.num_heads = 0
  arm.num_kv_heads = 0  # 0: as many as num_heads
  arm.d_head = 0
  arm.d_ffn = 0
  arm.num_experts = 0
  arm.experts_per_token = 0
  arm.d_expert = 0
  arm.d_shared = 0
  # Targets: ratios, 0 is not given.
  arm.activation_rate = 0.0  # N_a / N
  arm.aspect_ratio = 0.0  # d_model / num_layers
  arm.ffn_ratio = 0.0  # d_ffn / d_model
  arm.total_ffn_ratio = 0.0  # (d_shared + E d_expert) / d_model
  arm.shared_expert = True  # d_shared = K d_expert
  arm.multiple_of = 0  # widths are multiples of this; 0 leaves the choice to the solver
  # Training.
  arm.compute_multiple = 1.0  # times the budget's C; other than 1 is a reference, not a parity arm
  arm.seeds = ()  # one run each; () is the config's seed
  arm.num_steps = 0  # 0: from C and the batch
  arm.batch_sequences = 0  # 0: StepLaw
  arm.peak_learning_rate = 0.0  # 0: StepLaw
  arm.learning_rate_multiplier = 1.0
  arm.gates = ""  # raw | normalized; "" follows model.normalize_gates
  arm.routed_scale = ""  # a number | E/K | learned; "" follows model.routed_scale
  # Controls: dense models of another N at the budget's C and data; at most one of the two.
  arm.params_multiple = 1.0  # times the budget's N
  arm.active_of = ""  # an MoE arm's name: its depth, width and heads, with N = its N_a
  # check: at parity, but tried for its learning rate or batch and not compared; tuning: a try that
  # decides the learning rate of the arm that it `tunes` (the planner's, see study/tuning.py)
  arm.role = ""
  arm.tunes = ""
  for name, value in fields.items():
    arm[name] = value if name in arm else _unknown(name, arm)
  return arm


def _unknown(name: str, arm: ConfigDict):
  raise KeyError(f"an arm has no field {name!r}; it has {', '.join(arm)}")
