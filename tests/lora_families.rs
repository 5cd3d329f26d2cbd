//! Adapters of models with windows, GELU, norms on outputs and fused matrices, against PEFT and torch (tests/fixtures).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may fall"
)]

mod reference;

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use reference::adapters::{config, peft, peft_name, write};
use reference::*;
use shammah::lora::dataset::Sequence;
use shammah::lora::preference::Pairs;
use shammah::lora::trainer::{self, Batch, MemoryPlan, TrainingData};
use shammah::lora::{LoraAdapter, TrainableLora};
use shammah::models::{Decoder, Module, Site};

const ADAPTED: [&str; 3] = ["mistral", "gemma3", "phi3"];
/// Largest relative error of a gradient.
const GRADIENT: f64 = 1e-4;

#[test]
fn logits_with_an_adapter_equal_those_of_peft() {
    for family in ADAPTED {
        let decoder = decoder(family);
        let adapter = peft(family, "peft_all", decoder.config());
        assert_eq!(adapter.sites().len(), 21, "{family}: all seven projections");
        let logits = logits(&decoder, &reference_ids(family), &adapter);
        let expected = tensors(&format!("{family}/peft_all/reference_logits.safetensors"));
        assert_near(family, &logits, &expected["logits"], LOGITS);
    }
}

/// The sequences of a family's gradients: they begin alike and are longer than its window.
fn sequences(data: &HashMap<String, Tensor>) -> Vec<Sequence> {
    let numbers = |name: &str| data[name].to_vec1::<i64>().unwrap();
    let ids = data["ids"].to_dtype(DType::U32).unwrap().to_vec2::<u32>().unwrap();
    let rows = ids.into_iter().zip(numbers("lengths").into_iter().zip(numbers("loss_start")));
    let sequence = |(id, (ids, (length, start))): (usize, (Vec<u32>, (i64, i64)))| Sequence {
        id: id as i64,
        ids: ids[..length as usize].to_vec(),
        answer_start: start as usize,
        weight: 1.0,
    };
    rows.enumerate().map(sequence).collect()
}

/// Loss and gradients by PEFT's names.
fn gradients(
    decoder: &Decoder,
    lora: &TrainableLora,
    train: &[Sequence],
    memory: MemoryPlan,
) -> (f64, HashMap<String, Tensor>) {
    let data =
        TrainingData { train, weights: vec![1.0; train.len()], anchors: &[], pairs: Pairs::NONE };
    let batch = Batch { epoch: 1, items: (0..train.len()).collect(), anchors: Vec::new() };
    let got = trainer::gradients(decoder, lora, &data, &batch, 0.0, memory).unwrap();
    let sites = (0..decoder.config().num_hidden_layers)
        .flat_map(|layer| Module::ALL.map(|module| Site { layer, module }));
    let names = sites.flat_map(|site| ['A', 'B'].map(|factor| peft_name(site, factor)));
    (got.loss, names.zip(got.tensors.into_iter().map(Option::unwrap)).collect())
}

/// Brings the gradients of split matrices together: A was everyone's, each had its rows of B.
fn fused(mut split: HashMap<String, Tensor>, layers: usize) -> HashMap<String, Tensor> {
    let matrices = [
        ("self_attn", "qkv_proj", vec!["q_proj", "k_proj", "v_proj"]),
        ("mlp", "gate_up_proj", vec!["gate_proj", "up_proj"]),
    ];
    for (layer, (part, whole, names)) in
        (0..layers).flat_map(|layer| matrices.iter().map(move |m| (layer, m)))
    {
        for factor in ['A', 'B'] {
            let name = |module: &str| {
                format!(
                    "base_model.model.model.layers.{layer}.{part}.{module}.lora_{factor}.weight"
                )
            };
            let parts: Vec<Tensor> =
                names.iter().map(|n| split.remove(&name(n)).unwrap()).collect();
            let together = match factor {
                'A' => parts.into_iter().reduce(|sum, next| (sum + next).unwrap()).unwrap(),
                _ => Tensor::cat(&parts, 0).unwrap(),
            };
            split.insert(name(whole), together);
        }
    }
    split
}

#[test]
fn gradients_equal_those_of_torch_however_they_are_computed() {
    for family in ADAPTED {
        let decoder = decoder(family);
        let expected = tensors(&format!("{family}/gradients.safetensors"));
        let train = sequences(&expected);
        let adapter = peft(family, "peft_all", decoder.config());
        let lora = TrainableLora::from_adapter(&adapter, 0.0).unwrap();
        for (checkpointed_layers, micro_batch) in [(0, 0), (2, 0), (3, 1)] {
            let plan = MemoryPlan { checkpointed_layers, micro_batch };
            let (loss, mut got) = gradients(&decoder, &lora, &train, plan);
            if family == "phi3" {
                got = fused(got, 3);
            }
            let right = f64::from(values(&expected["loss"])[0]);
            assert!((loss / right - 1.0).abs() < 1e-5, "{family}: loss {loss}, torch {right}");
            let named = expected.iter().filter(|(name, _)| name.contains("lora_"));
            let errors: Vec<f64> = named.map(|(name, t)| relative(&got[name], t)).collect();
            assert_eq!(errors.len(), got.len(), "{family}: every tensor is compared");
            let worst = errors.into_iter().fold(0.0, f64::max);
            println!("{family} {plan:?}: loss {loss:.4}, largest error of a gradient {worst:.1e}");
            assert!(worst < GRADIENT, "{family} {plan:?}: {worst:.1e}");
        }
    }
}

#[test]
fn an_adapter_that_names_a_matrix_twice_or_in_a_model_without_it_is_refused() {
    let phi3 = decoder("phi3");
    let folder = tempfile::tempdir().unwrap();
    let modules = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "q_proj"];
    let mut twice = tensors("phi3/peft_all/adapter_model.safetensors");
    let q_a = peft_name(Site { layer: 1, module: Module::QProj }, 'A');
    let whole = &twice[&q_a.replace("q_proj", "qkv_proj")];
    twice.insert(q_a.clone(), whole.clone());
    write(folder.path(), &config(4, 10.0, &modules), &twice);
    let refused = |model: &Decoder| {
        let loaded = LoraAdapter::load(folder.path(), model.config(), &Device::Cpu);
        loaded.unwrap_err().to_string()
    };
    let error = refused(&phi3);
    assert!(error.contains("adapts q_proj a second time"), "{error}");
    let fused: HashMap<_, _> =
        twice.into_iter().filter(|(name, _)| name.contains("gate_up_proj")).collect();
    write(folder.path(), &config(4, 10.0, &["gate_up_proj"]), &fused);
    let error = refused(&decoder("mistral"));
    assert!(error.contains("is unknown") && error.contains("gate_up_proj"), "{error}");
}
