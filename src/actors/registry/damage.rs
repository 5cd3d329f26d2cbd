//! Live adapters at the start: read, and set aside where they are damaged.

use std::collections::BTreeMap;

use super::RegistryParts;
use crate::actors::base::Base;
use crate::domain::AdapterId;
use crate::lora::LoraError;
use crate::store::SetAside;

impl RegistryParts {
    /// Hands the live adapters of a base to the model; says which cannot be loaded, and what answers in their place.
    pub(super) async fn bring_live(
        &self,
        base: &Base,
        rows: BTreeMap<String, AdapterId>,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        for (domain, id) in rows {
            let mut next = Some(id);
            while let Some(id) = next.take() {
                match self.try_read(base, self.home.adapter(&id)).await {
                    Ok(set) => {
                        self.swap_for(base, &domain, Some((id, set))).await;
                    }
                    Err(error) => {
                        let (line, instead) = self.unreadable(&domain, id, &error).await;
                        lines.push(line);
                        next = instead;
                    }
                }
            }
        }
        for domain in self.mixtures.keys() {
            // A mixture answers where no adapter is live, too.
            if self.answering.of(domain).is_none() {
                self.swap_for(base, domain, None).await;
            }
            lines.extend(self.mixed(base, domain, None).await.1);
        }
        lines
    }

    /// Sets a damaged adapter aside, if this process may; returns what to say, and what is live instead. What may be read
    /// another time (too many open files, no memory) stays where it is.
    async fn unreadable(
        &self,
        domain: &str,
        id: AdapterId,
        error: &LoraError,
    ) -> (String, Option<AdapterId>) {
        if error.is_damage() && self.right.is_held() {
            let (name, why) = (id.clone(), error.to_string());
            match self.db.call(move |store| store.quarantine_adapter(&name, &why)).await {
                Ok(SetAside { to, instead }) => {
                    let answers = instead
                        .as_ref()
                        .map_or("the base model".to_owned(), |id| format!("adapter \"{id}\""));
                    let line = format!(
                        "adapter \"{id}\" is damaged and was set aside in {}, domain \"{domain}\" answers with {answers}: {error}",
                        to.display()
                    );
                    return (line, instead);
                }
                Err(error) => tracing::warn!(adapter = %id, %error, "it was not set aside"),
            }
        }
        let line = format!(
            "adapter \"{id}\" cannot be loaded, domain \"{domain}\" answers with the base model: {error}"
        );
        self.answering.refuse(domain, id);
        (line, None)
    }
}
