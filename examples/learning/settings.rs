//! What is compared: hyper-parameters by name.

use anyhow::{Result, bail};
use shammah::config::Config;
use shammah::lora::{TrainingParams, Weighting};
use shammah::plan;

/// The parameters of a setting for a model of so many parameters and a job of so many examples.
pub fn params(
    setting: &str,
    parameters: usize,
    examples: usize,
    rule: bool,
    seed: u64,
) -> Result<TrainingParams> {
    let config = Config::defaults()?;
    let mut params = plan::training_params(&config.lora, parameters, examples, rule);
    params.seed = seed;
    match setting {
        "defaults" => {}
        "seed" => {
            params.target_modules = vec!["q_proj".to_owned(), "v_proj".to_owned()];
            params.learning_rate = 1e-4;
            (params.min_steps, params.anchor, params.paraphrase) = (0, 0.0, false);
        }
        "no-anchor" => params.anchor = 0.0,
        "sampling" => params.weighting = Weighting::Sampling,
        other => {
            for part in other.split(',') {
                let Some((key, value)) = part.split_once('=') else {
                    bail!("{part} is no KEY=VALUE")
                };
                change(&mut params, key, value)?;
            }
        }
    }
    Ok(params)
}

fn change(params: &mut TrainingParams, key: &str, value: &str) -> Result<()> {
    match key {
        "lr" => params.learning_rate = value.parse()?,
        "steps" => params.min_steps = value.parse()?,
        "anchor" => params.anchor = value.parse()?,
        "anchors" => params.anchor_prompts = value.parse()?,
        "rank" => params.rank = value.parse()?,
        "alpha" => params.alpha = value.parse()?,
        "dropout" => params.dropout = value.parse()?,
        "neighbours" => params.neighbour_prompts = value.parse()?,
        "paraphrase" => params.paraphrase = value.parse()?,
        "batch" => params.batch_size = value.parse()?,
        "weighting" => params.weighting = Weighting::Sampling,
        "modules" => {
            params.target_modules = value.split('+').map(|m| format!("{m}_proj")).collect();
        }
        _ => bail!("unknown key {key}"),
    }
    Ok(())
}
