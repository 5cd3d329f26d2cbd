use std::sync::Arc;

use super::*;
use crate::lora::AdapterSet;
use crate::models::{self, Adapt, LoadedModel, ModelSource, Module};

fn adapter(
    model: &LoadedModel,
    modules: &[Module],
    (rank, alpha): (usize, f64),
    seed: f64,
) -> LoraAdapter {
    let decoder = &model.decoder;
    let mut sites = BTreeMap::new();
    for layer in 0..decoder.config().num_hidden_layers {
        for &module in modules {
            let (input, output) = decoder.config().projection(module);
            let fill = |rows: usize, cols: usize, at: f64| {
                let value =
                    |i: usize| ((i as f64 * 0.37 + at + seed + layer as f64).sin() * 0.05) as f32;
                Tensor::from_vec(
                    (0..rows * cols).map(value).collect::<Vec<_>>(),
                    (rows, cols),
                    &Device::Cpu,
                )
            };
            let (a, b) = (fill(rank, input, 0.1).unwrap(), fill(output, rank, 1.7).unwrap());
            // Not all of one rank: sines of one frequency have rank two.
            let a = a.sqr().unwrap().affine(20.0, 0.0).unwrap().add(&a).unwrap();
            sites.insert(Site { layer, module }, Factors { a, b, magnitude: None, alpha });
        }
    }
    let target_modules = modules.iter().map(|m| m.name().to_owned()).collect();
    let config = LoraConfig { rank, alpha, rslora: false, dora: false, target_modules };
    LoraAdapter::from_factors(config, sites).unwrap()
}

fn logits(model: &LoadedModel, adapt: &dyn Adapt) -> Vec<f32> {
    let ids = Tensor::new(&[[5u32, 17, 300, 42, 7]], &Device::Cpu).unwrap();
    let hidden = model.decoder.hidden(&ids, None, adapt).unwrap();
    model.decoder.logits(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn relative(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let off: f64 = a.iter().zip(b).map(|(x, y)| square(x - y)).sum();
    (off / b.iter().map(|x| square(*x)).sum::<f64>()).sqrt()
}

#[test]
fn at_full_rank_the_sum_computes_what_both_do_and_below_it_the_error_falls_with_the_rank() {
    let model = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    let parent = adapter(&model, &[Module::ALL[0], Module::ALL[6]], (4, 8.0), 0.3);
    // Other ranks, scales and places.
    let delta = adapter(&model, &[Module::ALL[0], Module::ALL[4]], (4, 16.0), 2.1);
    let full = sum(&parent, &delta, Some(8)).unwrap();
    assert!(full.error < 1e-9, "{}", full.error);
    let mut errors = vec![full.error];
    for rank in [6, 4, 2, 1] {
        errors.push(sum(&parent, &delta, Some(rank)).unwrap().error);
    }
    assert!(errors.windows(2).all(|w| w[0] <= w[1]) && errors[4] > 0.01, "{errors:?}");

    let kept = sum(&parent, &delta, None).unwrap().adapter;
    assert!(kept.sites().values().all(|factors| factors.rank() == 4));
    assert_eq!(kept.config().target_modules.len(), 3);

    let alone = logits(&model, &parent);
    let both = vec![(Arc::new(parent), 1.0), (Arc::new(delta), 1.0)];
    let both = logits(&model, &AdapterSet::weighted(both).unwrap());
    let one = logits(&model, &full.adapter);
    assert!(relative(&one, &both) < 1e-5, "{}", relative(&one, &both));
    assert!(relative(&alone, &both) > 1e-3, "the difference must matter here");
}

#[test]
fn a_dora_adapter_takes_no_difference() {
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        rslora: false,
        dora: false,
        target_modules: vec!["q_proj".to_owned()],
    };
    assert!(check(&lora, false).is_ok());
    assert!(check(&lora, true).is_err());
    assert!(check(&LoraConfig { dora: true, ..lora }, false).is_err());
}
