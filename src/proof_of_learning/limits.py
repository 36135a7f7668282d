"""Every limit of reading: what a proof, or a file beside it, may cost before anything is known about it.

A proof is hostile, so a size is known and bounded before a byte of it is read, and what is decoded is bounded by what is
stored: memory and time follow from the bytes that somebody sent, not from what these bytes claim. ``docs/spec/format.md``,
section 13, has those that belong to the format.
"""

from __future__ import annotations

# ---- files of a proof, in bytes ---------------------------------------------------------------------------------

MAX_HEADER = 64 << 20  # header.json: descriptions of models with 100,000 modules take a tenth
MAX_SEAL = 1 << 12  # seal.json: a few digests
MAX_LINE = 1 << 20  # a line of log or index: digests and the names of measures
MAX_LOG = 4 << 30  # log.jsonl and index.jsonl: five million segments
MAX_BLOCK = 1 << 30  # one segment's columns; a million steps with their batches and generators take a quarter
MAX_CLAIM = 4 << 20  # claim.json: one claim, the runs that were begun under it, signatures and timestamps
MAX_VERDICT = 1 << 28  # a verdict in JSON, when it is signed
MAX_POLICY = 1 << 20  # a policy is written by hand
MAX_ATTESTATION = 2 << 20  # a statement, an envelope (which may hold a claim) or a timestamp token
MAX_ATTESTATIONS = 256  # files of the folder attestations/, and
MAX_ATTESTED = 16 << 20  # what they have together
MAX_LOG_HEADS = 100  # stamped heads that a recording adds: two files each
MAX_GAPS = 1000  # stretches of a recording in which no authority answered, as it notes them
MAX_TOKEN = 1 << 16  # a timestamp token with its certificates
MAX_SIGNATURES = 16  # of an envelope
MAX_TRIED = 1 << 14  # pairs of a key and a signature, of all envelopes of a proof: some thousands are tried in a second
MAX_KEY = 1 << 16  # a key in a file
MAX_ROOTS = 1 << 20  # certificates of authorities that a verifier trusts

# ---- challenge and open, in bytes -------------------------------------------------------------------------------

MAX_CHALLENGE = 1 << 20  # a challenge, the second with the segments that it draws
MAX_ANSWERS = 64 << 20  # answers.json: a number or two for each state, and the layouts
MAX_CUT = 64 << 20  # a state that is cut to some coordinates
MAX_CUTS = 4 << 30  # all of them
MAX_LAYOUTS = 64  # ways in which the states of a run lay out their tensors
MAX_HEADS = 4  # outputs that are looked at, each of at most
MAX_ROWS, MAX_COLUMNS = 64, 128
MAX_SAMPLES = 16 << 30  # samples.bin, which is read into memory
MAX_LEDGER = 256 << 20  # what an owner opened, or a verifier asked, so far

# ---- documents --------------------------------------------------------------------------------------------------

MAX_DEPTH = 64  # of nested JSON, and so of a state's tree: nothing that walks it may run out of stack
MAX_QUOTED = 200  # characters of foreign text in a message
MAX_STEPS = 1 << 48  # of training: any product with a size fits 64 bits
MAX_INTERVAL = 1 << 32  # steps of a segment
MAX_NAME = 200  # characters of a file's, function's or part's name
MAX_TEXT = 4096  # characters of an argument or setting
MAX_ARGUMENTS = 1000  # arguments, and settings
MAX_INPUTS = 10_000  # files that are read before the first step
MAX_PARTS = 1000  # of a state
MAX_EVENT = 1 << 14  # bytes of a line of the log that records an event
MAX_ROUND = 1 << 14  # bytes of a file with a round of a public beacon, or with what its network is
MAX_OWNERS = 64  # keys that a claim names
MAX_RANKS = 8  # processes that train together: who verifies runs as many at once
MAX_THREADS = 4096  # of a numeric environment: what the largest machines have

# ---- states -----------------------------------------------------------------------------------------------------

MAX_OBJECT_HEADER = 64 << 20  # the JSON that describes an object's tensors, and the state's tree
MAX_DIMENSIONS = 64  # of a tensor: as many as PyTorch computes with
MAX_CHAIN = 64  # differences between a state and a whole one, so that any opens in bounded time
# What all compressed states of a proof may weigh together, once decoded: bytes of their tensors, and HEADER_WEIGHT for each
# byte of JSON. Decoding takes time and memory in proportion to it, and compression alone would let a hundred bytes stand for
# a gigabyte. Weights compress to no less than a hundredth of a number's size; a writer stores a state as `raw`, which
# weighs nothing here, before it would break this.
WEIGHT_ROOM = 16 << 20  # for any proof, however small, and
MAX_EXPANSION = 32  # times the bytes of its objects,
MAX_EXPANSION_COMPACT = 64  # or as many times those of the codec `compact`, which keeps a bit of a number
HEADER_WEIGHT = 32  # bytes of memory that a byte of JSON may become: five of them make a node

# ---- sealed programs --------------------------------------------------------------------------------------------

MAX_PROGRAM = 16 << 20  # program.json, constants included
MAX_OPERATIONS = 20_000  # of one graph: a Transformer of 100 layers has a tenth
MAX_KERNELS = 100_000  # that one graph takes: an LSTM has about a dozen for each step of its input
MAX_ALL_KERNELS = 200_000  # that all graphs take: each is looked at once before anything runs
MAX_GRAPHS = 16  # sizes of a batch
MAX_HELD = 20_000  # parameters, and buffers, and constants
MAX_ELEMENTS = 1 << 32  # of one value
MAX_VALUES = 1 << 38  # bytes of all values of a graph together
MAX_LIST = 1 << 12  # entries of an argument
MAX_RATES = 200_000  # recorded rates
