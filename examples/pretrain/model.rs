//! The shape of the built-in model, its initial weights, checkpoints and export.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use candle_core::{DType, Device, Tensor, Var};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shammah::lora::Moments;
use shammah::models::{Decoder, ModelConfig, Tokenizer};

/// Rows of the embedding; a multiple of 64, the tokenizer's vocabulary included.
pub const VOCAB_SIZE: usize = 2048;
/// Standard deviation of the initial weights.
const INIT_STD: f64 = 0.02;

/// The chat template of the built-in model: ChatML.
const CHAT_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// `config.json` of the built-in model: Qwen3's shape, about 2.8 million parameters.
pub fn config_json() -> serde_json::Value {
    serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": true,
        "attention_bias": false,
        "initializer_range": INIT_STD,
        "bos_token_id": null,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16"
    })
}

/// `tokenizer_config.json` of the built-in model.
pub fn tokenizer_config_json() -> serde_json::Value {
    serde_json::json!({
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 1024,
        "bos_token": null,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": false,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE
    })
}

/// A decoder whose weights are variables, by name in a fixed order.
pub struct TrainedModel {
    pub decoder: Decoder,
    pub vars: BTreeMap<String, Var>,
}

/// Makes the decoder with weights from `saved`, or new ones drawn with `seed`.
pub fn build(saved: Option<&HashMap<String, Tensor>>, seed: u64) -> Result<TrainedModel> {
    let text = config_json().to_string();
    let config = ModelConfig::parse(&text, Path::new("config.json"))?;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut vars = BTreeMap::new();
    // The last layers of each block start smaller, so that depth does not raise the variance.
    let residual_std = INIT_STD / (2.0 * config.num_hidden_layers as f64).sqrt();
    let decoder = Decoder::new(config, &Device::Cpu, &mut |name, shape| {
        let value = match saved.and_then(|s| s.get(name)) {
            Some(tensor) => tensor.clone(),
            None if shape.len() == 1 => Tensor::ones(shape, DType::F32, &Device::Cpu)?,
            None => {
                let residual = name.contains("o_proj") || name.contains("down_proj");
                let std = if residual { residual_std } else { INIT_STD };
                normal(shape, std, &mut rng)?
            }
        };
        let var = Var::from_tensor(&value)?;
        let tensor = var.as_tensor().clone();
        vars.insert(name.to_owned(), var);
        Ok(tensor.into())
    })?;
    Ok(TrainedModel { decoder, vars })
}

/// Normally distributed values by Box and Muller.
fn normal(shape: &[usize], std: f64, rng: &mut StdRng) -> candle_core::Result<Tensor> {
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| {
            let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos() * std) as f32
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// Writes weights, moments and step, the last file renamed into place.
pub fn save(out: &Path, model: &TrainedModel, moments: &[Moments], step: usize) -> Result<()> {
    let mut tensors = HashMap::new();
    for ((name, var), moments) in model.vars.iter().zip(moments) {
        tensors.insert(name.clone(), var.as_tensor().clone());
        tensors.insert(format!("first.{name}"), moments.first.clone());
        tensors.insert(format!("second.{name}"), moments.second.clone());
    }
    tensors.insert("step".into(), Tensor::new(&[u32::try_from(step)?], &Device::Cpu)?);
    let temporary = out.join("checkpoint.tmp");
    candle_core::safetensors::save(&tensors, &temporary)?;
    fs_err::rename(temporary, out.join("checkpoint.safetensors"))?;
    Ok(())
}

/// Reads a checkpoint: all tensors, moments among them, and the step.
pub fn load(out: &Path) -> Result<Option<(HashMap<String, Tensor>, usize)>> {
    let path = out.join("checkpoint.safetensors");
    if !path.exists() {
        return Ok(None);
    }
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let step = tensors.get("step").context("the checkpoint has no step")?.to_vec1::<u32>()?;
    Ok(Some((tensors, step[0] as usize)))
}

/// Reads the tokenizer that training made.
pub fn tokenizer(out: &Path) -> Result<Tokenizer> {
    let path = out.join("tokenizer.json");
    let config = tokenizer_config_json().to_string();
    Ok(Tokenizer::new(&fs_err::read(&path)?, Some(config.as_bytes()), &[2], &path)?)
}

/// Writes the model in Hugging Face layout.
pub fn export(out: &Path, assets: &Path) -> Result<()> {
    let (tensors, step) =
        load(out)?.ok_or_else(|| anyhow!("no checkpoint in {}", out.display()))?;
    fs_err::create_dir_all(assets)?;
    let weights = tensors
        .into_iter()
        .filter(|(name, _)| name.starts_with("model."))
        .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::BF16)?)))
        .collect::<Result<BTreeMap<_, _>>>()?;
    let parameters: usize = weights.values().map(Tensor::elem_count).sum();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = assets.join("model.safetensors");
    safetensors::serialize_to_file(&weights, Some(metadata), &path)?;
    fs_err::write(assets.join("config.json"), format!("{:#}\n", config_json()))?;
    fs_err::write(
        assets.join("tokenizer_config.json"),
        format!("{:#}\n", tokenizer_config_json()),
    )?;
    fs_err::copy(out.join("tokenizer.json"), assets.join("tokenizer.json"))?;
    println!("{parameters} parameters after {step} steps in {}", assets.display());
    Ok(())
}
