//! The console's commands, as `/help` tells them.

/// A command's name, its arguments and what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Help {
    /// The name, without the slash.
    pub name: &'static str,
    /// Name and arguments.
    pub usage: &'static str,
    /// What it does, for the list.
    pub summary: &'static str,
    /// More, for `/help COMMAND`.
    pub detail: &'static str,
}

/// All commands, in the order of `/help`.
pub const COMMANDS: &[Help] = &[
    Help {
        name: "good",
        usage: "/good [NOTE]",
        summary: "the last answer is right",
        detail: "The answer becomes a training example as it stands, with weight 1.",
    },
    Help {
        name: "medium",
        usage: "/medium [NOTE]",
        summary: "the last answer should be improved",
        detail: "Stored with weight 3. With a NOTE the model answers again, with the note in mind, and you choose: Enter or /accept takes that as the answer to learn (only /accept with the built-in model), /fix TEXT gives another, /skip leaves the mark waiting. Until it has a better answer it is never trained on.",
    },
    Help {
        name: "critical",
        usage: "/critical [NOTE]",
        summary: "the last answer must never come again",
        detail: "Stored with weight 10. With a NOTE the model answers again, with the note in mind, and you choose: Enter or /accept takes that as the answer to learn (only /accept with the built-in model), /fix TEXT gives another, /skip leaves the mark waiting. Until it has a better answer it is never trained on.",
    },
    Help {
        name: "fix",
        usage: "/fix [#ID] TEXT",
        summary: "what the last answer should have been",
        detail: "TEXT becomes a training example with the weight of the answer's mark, else 3. The strongest signal there is. With #ID it is for that mark, as /pending lists it.",
    },
    Help {
        name: "accept",
        usage: "/accept [ID]",
        summary: "take the revision as the answer to learn",
        detail: "The one on offer (Enter on an empty line does the same), or that of mark ID made earlier in this session. The conversation goes on with it.",
    },
    Help {
        name: "skip",
        usage: "/skip",
        summary: "leave the revision; the mark waits",
        detail: "Also stops one that is being made. Just going on does the same.",
    },
    Help {
        name: "pending",
        usage: "/pending",
        summary: "marks that wait for a better answer",
        detail: "With their ids, notes and questions, the newest first, and whether /accept ID has a revision. /fix #ID TEXT gives the better answer.",
    },
    Help {
        name: "undo",
        usage: "/undo",
        summary: "take the last mark or fix back",
        detail: "Takes back the last step: a fix or an accepted revision first, then the mark itself, unless a training job already has it. Again: the step before.",
    },
    Help {
        name: "forget",
        usage: "/forget ID [retrain]",
        summary: "drop a mark for good",
        detail: "Overwrites its text in the database and says which adapters have seen it. ID is that of /marks; with retrain a job learns its domain from zero without it.",
    },
    Help {
        name: "marks",
        usage: "/marks [N]",
        summary: "the newest marks, with their numbers",
        detail: "The newest 10, or N: number, mark, weight, domain, what became of it, question and note.",
    },
    Help {
        name: "domain",
        usage: "/domain [NAME|auto]",
        summary: "domains: show, pin one, route again",
        detail: "Each question goes to the domain whose marks it is closest to, shown as [rust 0.62]. NAME pins one: it answers, and marks go to it.",
    },
    Help {
        name: "stats",
        usage: "/stats",
        summary: "answers, marks and trainings in numbers",
        detail: "By adapter and by week. `shammah stats --json` and --csv FILE have all of it.",
    },
    Help {
        name: "train",
        usage: "/train [DOMAIN]",
        summary: "train on the marks now",
        detail: "Puts a job into the queue without waiting for the threshold. Chat goes on meanwhile.",
    },
    Help {
        name: "jobs",
        usage: "/jobs [cancel ID|wait]",
        summary: "training jobs: list, cancel, wait for all",
        detail: "Without arguments: the latest jobs. wait: until no job is queued or running; Ctrl-C ends the wait, not the job.",
    },
    Help {
        name: "adapters",
        usage: "/adapters [list|load ID…|unload [ID]|rollback [DOMAIN]|compare A B PROMPT|delete ID]",
        summary: "what was learnt: list, switch, go back",
        detail: "load makes one live, or lets several answer together in this session (load A:0.7 B:0.3); compare has two answer the same question (base is the model alone); unload goes back to the base, rollback to the one before, delete removes one that is not in use.",
    },
    Help {
        name: "compare",
        usage: "/compare PROMPT",
        summary: "what the live adapter changes in an answer",
        detail: "PROMPT alone is answered by the model and by its live adapter, with the same seed. Neither answer becomes part of the conversation.",
    },
    Help {
        name: "model",
        usage: "/model [MODEL]",
        summary: "the model: show, change",
        detail: "MODEL is what --model takes; one of the hub must be in the cache (shammah models pull). It is loaded while the old one answers. The conversation goes on; adapters, marks and jobs belong to the model they were made with.",
    },
    Help {
        name: "system",
        usage: "/system [TEXT|off]",
        summary: "the system message: show, set, take away",
        detail: "It holds for this conversation; after /clear the configured one (generation.system) is back.",
    },
    Help {
        name: "set",
        usage: "/set [KEY [VALUE]]",
        summary: "settings of this session: show, change",
        detail: "How answers are sampled, and whether jobs start by themselves. Not saved: the configuration file is for that.",
    },
    Help {
        name: "eval",
        usage: "/eval ADAPTER [OTHER]",
        summary: "measure an adapter as the gate does",
        detail: "Against the base, or against OTHER, on the marks of its domain and on general questions. The chat goes on meanwhile; Ctrl-C stops it. /run eval --help has more.",
    },
    Help {
        name: "run",
        usage: "/run COMMAND [ARGUMENTS]",
        summary: "any other command of shammah",
        detail: "As in a shell, for this data directory, configuration and model: /run adapters show A, /run adapters compare A B, /run feedback edit 3 --fix \"…\", /run feedback export FILE, /run doctor. /run --help lists them. It runs beside the chat; Ctrl-C stops it.",
    },
    Help {
        name: "clear",
        usage: "/clear",
        summary: "start a new conversation",
        detail: "The model forgets what was said. Marks stay.",
    },
    Help {
        name: "help",
        usage: "/help [COMMAND]",
        summary: "this list, or more about a command",
        detail: "A text that begins with a slash is sent with two: //etc is what?",
    },
    Help {
        name: "quit",
        usage: "/quit",
        summary: "leave (also Ctrl-D)",
        detail: "A running job writes a checkpoint and goes on at the next start.",
    },
];
