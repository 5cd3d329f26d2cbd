//! Opens the device that the user chose.

use candle_core::{Device, DeviceLocation};

use crate::domain::DeviceChoice;

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without it.
    #[error(
        "device \"{device}\" is not built into this program: use --device cpu, or build with `cargo build --release --features {feature}`"
    )]
    NotBuilt {
        /// What was asked for.
        device: DeviceChoice,
        /// The feature that has it.
        feature: &'static str,
    },
    /// It is built in, but this machine does not have it, or its driver refuses.
    #[error(
        "device \"{device}\" cannot be opened: {reason}: use --device cpu, or check its driver"
    )]
    Absent {
        /// What was asked for.
        device: DeviceChoice,
        /// What the driver said.
        reason: String,
    },
}

/// A device, and why it is not the one hoped for.
#[derive(Debug)]
pub struct Opened {
    /// The device.
    pub device: Device,
    /// Why `auto` took another device than an accelerator that is built in or could be; one line.
    pub fallback: Option<String>,
}

/// Opens a device; `auto` takes CUDA, then Metal, then the CPU.
///
/// # Errors
/// When a device that was named is not built in or not there. `auto` never fails.
pub fn open(choice: DeviceChoice) -> Result<Opened, DeviceError> {
    let named = |device| Opened { device, fallback: None };
    match choice {
        DeviceChoice::Cpu => Ok(named(Device::Cpu)),
        DeviceChoice::Cuda(ordinal) => cuda(ordinal).map(named),
        DeviceChoice::Metal => metal().map(named),
        DeviceChoice::Auto => Ok(first_of([cuda(0), metal()])),
    }
}

/// Opens the device that training computes on where answers are computed on `choice`: CUDA or the CPU.
///
/// # Errors
/// When a CUDA device that was named is not built in or not there. `auto` never fails.
pub fn open_for_training(choice: DeviceChoice) -> Result<Opened, DeviceError> {
    match choice {
        DeviceChoice::Auto => Ok(first_of([cuda(0)])),
        DeviceChoice::Metal => Ok(Opened {
            device: Device::Cpu,
            fallback: Some("training on the CPU: metal is not tried".into()),
        }),
        named => open(named),
    }
}

/// Returns the name of an open device, as its choice spells it.
pub fn choice_of(device: &Device) -> DeviceChoice {
    match device.location() {
        DeviceLocation::Cpu => DeviceChoice::Cpu,
        DeviceLocation::Cuda { gpu_id } => DeviceChoice::Cuda(gpu_id),
        DeviceLocation::Metal { .. } => DeviceChoice::Metal,
    }
}

fn first_of<const N: usize>(attempts: [Result<Device, DeviceError>; N]) -> Opened {
    let mut reasons = Vec::new();
    for attempt in attempts {
        match attempt {
            Ok(device) => return Opened { device, fallback: None },
            Err(DeviceError::NotBuilt { device, .. }) => {
                reasons.push(format!("{device} is not built in"))
            }
            Err(DeviceError::Absent { device, reason }) => {
                reasons.push(format!("{device}: {reason}"))
            }
        }
    }
    Opened {
        device: Device::Cpu,
        fallback: Some(format!("computing on the CPU: {}", reasons.join(", "))),
    }
}

fn cuda(ordinal: usize) -> Result<Device, DeviceError> {
    let device = DeviceChoice::Cuda(ordinal);
    if !cfg!(feature = "cuda") {
        return Err(DeviceError::NotBuilt { device, feature: "cuda" });
    }
    Device::new_cuda(ordinal).map_err(|error| absent(device, &error))
}

fn metal() -> Result<Device, DeviceError> {
    let device = DeviceChoice::Metal;
    if !cfg!(feature = "metal") {
        return Err(DeviceError::NotBuilt { device, feature: "metal" });
    }
    Device::new_metal(0).map_err(|error| absent(device, &error))
}

fn absent(device: DeviceChoice, error: &candle_core::Error) -> DeviceError {
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or("no reason given").to_owned();
    DeviceError::Absent { device, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_always_opens_something() {
        let opened = open(DeviceChoice::Auto).unwrap();
        assert_eq!(opened.device.is_cpu(), opened.fallback.is_some());
    }

    #[test]
    fn training_takes_cuda_or_the_cpu_and_never_metal() {
        for choice in [DeviceChoice::Auto, DeviceChoice::Cpu, DeviceChoice::Metal] {
            let opened = open_for_training(choice).unwrap();
            assert!(!opened.device.is_metal(), "{choice}");
            assert_eq!(
                opened.fallback.is_some(),
                opened.device.is_cpu() && choice != DeviceChoice::Cpu
            );
        }
        assert_eq!(choice_of(&Device::Cpu), DeviceChoice::Cpu);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_cuda_device_that_was_named_is_no_cpu() {
        assert!(open_for_training(DeviceChoice::Cuda(0)).is_err());
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn what_is_not_built_in_says_how_to_build_it() {
        for (choice, feature) in [(DeviceChoice::Cuda(1), "cuda"), (DeviceChoice::Metal, "metal")] {
            let message = open(choice).unwrap_err().to_string();
            assert!(message.contains(&format!("--features {feature}")), "{message}");
            assert!(message.contains("--device cpu"), "{message}");
        }
    }
}
