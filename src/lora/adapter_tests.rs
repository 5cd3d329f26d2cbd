use candle_core::Device;

use super::*;
use crate::models::Module;

const SITE: Site = Site { layer: 0, module: Module::QProj };

fn adapter(value: f32, magnitude: Option<Tensor>) -> LoraAdapter {
    let filled = |shape: (usize, usize)| Tensor::full(value, shape, &Device::Cpu).unwrap();
    let (a, b) = (filled((2, 4)), filled((4, 2)));
    let config = LoraConfig {
        rank: 2,
        alpha: 6.0,
        rslora: false,
        dora: magnitude.is_some(),
        target_modules: vec!["q_proj".to_owned()],
    };
    let factors = Factors { a, b, magnitude, alpha: 6.0 };
    LoraAdapter::from_factors(config, [(SITE, factors)].into()).unwrap()
}

#[test]
fn a_token_takes_the_low_rank_term_of_lora_and_no_term_of_dora() {
    let plain = adapter(0.5, None);
    let Added::LowRank(terms) = plain.added_times(SITE, 0.5) else { panic!("a LoRA adapter") };
    assert_eq!(terms.iter().map(|t| t.scale).collect::<Vec<_>>(), [1.5], "alpha/rank, times 0.5");
    let magnitude = Tensor::ones(4, DType::F32, &Device::Cpu).unwrap();
    let scaled = adapter(0.5, Some(magnitude));
    assert!(matches!(scaled.added_times(SITE, 1.0), Added::Otherwise));
    let nowhere = Site { layer: 1, ..SITE };
    assert!(matches!(scaled.added(nowhere), Added::LowRank(terms) if terms.is_empty()));
}

#[test]
fn factors_are_kept_in_f16_where_that_is_close_to_them_and_nowhere_else() {
    // 1e-9 is zero in f16, 1e5 infinite, and at 3e-7 a step between two numbers is a fifth.
    for (value, close) in [(0.5, true), (0.333, true), (1e-9, false), (1e5, false), (3e-7, false)] {
        let adapter = adapter(value, None);
        let Added::LowRank(terms) = adapter.added(SITE) else { panic!("a LoRA adapter") };
        assert_eq!(terms[0].halves.is_some(), close, "{value}");
    }
}
