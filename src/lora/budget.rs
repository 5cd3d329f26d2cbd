//! The memory that a job may use, the plan that stays within it, and what is told of both.

use serde::{Deserialize, Serialize};

use super::JobError;
use super::estimate::{TooLarge, Workload};
use super::gradients::MemoryPlan;

const MEBIBYTE: u64 = 1 << 20;

/// What a limit on the process's private memory counts and the estimate does not: stacks, mostly unused, and what the
/// allocator keeps.
pub const PROCESS_RESERVE: u64 = 128 * MEBIBYTE;

/// Who bounds a job's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Bound {
    /// `lora.training.memory_limit_mb`.
    #[default]
    Setting,
    /// `worker.memory_limit_mb`, or another limit on the process.
    Process,
    /// What the machine has available.
    Machine,
}

/// The memory that a job may use. It decides how a result is computed, never what is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryBudget {
    /// Bytes; 0 where nobody knows: then nothing is planned.
    pub bytes: u64,
    /// Who says so.
    pub bound: Bound,
    /// Earlier attempts that ran out of memory; each makes the plan smaller.
    pub deaths: usize,
}

/// What a job was expected to need, and what it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resources {
    /// Memory expected at the peak, bytes.
    pub expected_bytes: u64,
    /// Time expected, milliseconds from the worker's start; unknown until a speed was measured.
    pub expected_ms: Option<u64>,
    /// How memory is traded for time.
    pub plan: MemoryPlan,
    /// Largest resident memory of the worker, bytes; known at the end.
    pub peak_bytes: Option<u64>,
    /// Time that it took, milliseconds; known at the end.
    pub elapsed_ms: Option<u64>,
}

impl MemoryBudget {
    /// Plans a job; the line, if there is one, says what it costs.
    ///
    /// # Errors
    /// A job that fits in no way: the message names the setting that would make it fit.
    pub fn plan(&self, job: &Workload) -> Result<(MemoryPlan, Option<String>), JobError> {
        let mut plan = match self.bytes {
            0 => MemoryPlan::default(),
            bytes => {
                MemoryPlan::fitting(job, bytes).map_err(|e| JobError::Input(self.refuse(&e)))?
            }
        };
        let planned = plan;
        for _ in 0..self.deaths {
            plan = plan.smaller(job).unwrap_or(plan);
        }
        if plan == MemoryPlan::default() {
            return Ok((plan, None));
        }
        let why = match self.deaths {
            0 => format!(" to stay within {}", mebibytes(self.bytes)),
            _ if plan == planned => "; it ran out of memory, and no plan needs less".to_owned(),
            _ => " because it ran out of memory".to_owned(),
        };
        let layers = job.model.num_hidden_layers;
        let mut line = format!("computes {} of {layers} layers twice", plan.checkpointed_layers);
        if plan.micro_batch > 0 {
            let noun = if plan.micro_batch == 1 { "example" } else { "examples" };
            line.push_str(&format!(", {} {noun} at a time,", plan.micro_batch));
        }
        Ok((plan, Some(line + &why)))
    }

    /// Refuses a model whose weights alone are too large, before they are read.
    ///
    /// # Errors
    /// The message names the setting that would make it fit.
    pub fn check_weights(&self, bytes: u64) -> Result<(), JobError> {
        if self.bytes == 0 || bytes <= self.bytes {
            return Ok(());
        }
        let error = TooLarge { needed: bytes, longest: 0, fitting: 0 };
        Err(JobError::Input(self.refuse(&error)))
    }

    fn refuse(&self, error: &TooLarge) -> String {
        let TooLarge { needed, longest, fitting } = *error;
        let (needs, may) = (mebibytes(needed), mebibytes(self.bytes));
        // Rounded up, so that what is advised is enough.
        let enough = needed.div_ceil(MEBIBYTE);
        let mut remedy = match self.bound {
            Bound::Setting => format!("set lora.training.memory_limit_mb to {enough} at least"),
            Bound::Process => {
                let enough = enough + PROCESS_RESERVE / MEBIBYTE;
                format!("set worker.memory_limit_mb to {enough} at least")
            }
            Bound::Machine => "free memory, or choose a smaller model".to_owned(),
        };
        if fitting > 0 {
            remedy.push_str(&format!(
                ", or leave out what is longer than {fitting} tokens (the longest has {longest})"
            ));
        }
        format!(
            "the job needs about {needs} of memory even when it computes every layer twice and one example at a time, \
             and may use {may}: {remedy}"
        )
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(MEBIBYTE))
}

#[cfg(test)]
mod tests {
    use super::super::estimate::{Load, Step};
    use super::*;
    use crate::models::{ModelConfig, Module};

    fn job() -> Workload {
        let text = r#"{"model_type": "qwen3", "vocab_size": 2048, "hidden_size": 192, "intermediate_size": 512,
            "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 1024}"#;
        let load = Load { tokens: 900, answers: 100 };
        Workload {
            model: ModelConfig::parse(text, std::path::Path::new("config.json")).unwrap(),
            model_bytes: 11 << 20,
            rank: 4,
            modules: vec![Module::QProj],
            steps: vec![Step { items: vec![load; 4], anchors: vec![] }],
            measured: vec![load],
            general: vec![],
            anchors: vec![],
        }
    }

    fn planned(bytes: u64, deaths: usize) -> (MemoryPlan, Option<String>) {
        MemoryBudget { bytes, bound: Bound::Setting, deaths }.plan(&job()).unwrap()
    }

    fn plan(checkpointed_layers: usize, micro_batch: usize) -> MemoryPlan {
        MemoryPlan { checkpointed_layers, micro_batch }
    }

    #[test]
    fn a_plan_says_what_it_costs_and_why() {
        assert_eq!(planned(0, 0), (plan(0, 0), None));
        assert_eq!(planned(1 << 40, 0), (plan(0, 0), None));
        let most = job().peak_bytes(plan(2, 0)).next_multiple_of(MEBIBYTE);
        let (found, line) = planned(most, 0);
        let mib = most / MEBIBYTE;
        assert_eq!(found, plan(2, 0));
        let expected = format!("computes 2 of 6 layers twice to stay within {mib} MiB");
        assert_eq!(line.unwrap(), expected);
        let lines = (1..=4).map(|deaths| planned(0, deaths).1.unwrap()).collect::<Vec<_>>();
        assert_eq!(
            lines,
            [
                "computes 6 of 6 layers twice because it ran out of memory",
                "computes 6 of 6 layers twice, 2 examples at a time, because it ran out of memory",
                "computes 6 of 6 layers twice, 1 example at a time, because it ran out of memory",
                "computes 6 of 6 layers twice, 1 example at a time, because it ran out of memory",
            ]
        );
    }

    #[test]
    fn a_refusal_names_the_setting_that_would_make_it_fit() {
        let least = job().peak_bytes(plan(6, 1));
        let refused = |bound| {
            let budget = MemoryBudget { bytes: least - MEBIBYTE, bound, deaths: 0 };
            budget.plan(&job()).unwrap_err().to_string()
        };
        let enough = least.div_ceil(MEBIBYTE);
        let setting = refused(Bound::Setting);
        assert!(setting.contains(&format!("memory_limit_mb to {enough} at least")), "{setting}");
        assert!(
            setting.contains("longer than") && setting.contains("longest has 901"),
            "{setting}"
        );
        let budget = MemoryBudget { bytes: enough * MEBIBYTE, ..MemoryBudget::default() };
        assert_eq!(budget.plan(&job()).unwrap().0, plan(6, 1), "what it names is enough");
        let reserve = PROCESS_RESERVE / MEBIBYTE;
        assert!(
            refused(Bound::Process)
                .contains(&format!("worker.memory_limit_mb to {}", enough + reserve))
        );
        assert!(refused(Bound::Machine).contains("smaller model"));
    }

    #[test]
    fn weights_that_are_too_large_are_refused_before_they_are_read() {
        let budget = MemoryBudget { bytes: MEBIBYTE, ..MemoryBudget::default() };
        assert!(budget.check_weights(MEBIBYTE).is_ok());
        let error = budget.check_weights(MEBIBYTE + 1).unwrap_err().to_string();
        assert!(error.contains("memory_limit_mb to 2 at least"), "{error}");
        assert!(MemoryBudget::default().check_weights(u64::MAX).is_ok());
    }
}
