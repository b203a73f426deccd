//! The calls of agent.proto about base images that are made of capsules.

use super::{service::AgentService, snapshots::us};
use crate::{
    capsule::{
        capture::{Figures, blocking},
        flatten,
    },
    disk::base::BaseImage,
    error::AgentError,
};
use hearth_proto::{
    id::{IdError, ImageId},
    wire::agent as wire,
};
use std::time::Instant;

fn parse_image(id: &str) -> Result<ImageId, AgentError> {
    id.parse().map_err(|error: IdError| AgentError::Invalid { field: "image_id", reason: error.to_string() })
}

impl AgentService {
    pub(super) async fn flatten_capsule(
        &self,
        request: wire::FlattenRequest,
    ) -> Result<wire::FlattenReply, AgentError> {
        let start = Instant::now();
        let id = parse_image(&request.image_id)?;
        let handle = self.capsule(&request.capsule_id)?;
        self.not_stopping()?;
        let (image, figures) = flatten::flatten(&self.parts, &handle, id).await?;
        Ok(wire::FlattenReply {
            image: Some(image_wire(&image)),
            capture: figures.as_ref().map(Figures::wire),
            total_us: us(start.elapsed()),
        })
    }

    pub(super) async fn base_images(&self) -> Result<wire::ListBaseImagesReply, AgentError> {
        let bases = self.parts.templates.bases.clone();
        let images = blocking(move || bases.list()).await?;
        Ok(wire::ListBaseImagesReply { images: images.iter().map(image_wire).collect() })
    }

    pub(super) async fn delete_base_image_of(&self, id: &str) -> Result<(), AgentError> {
        let id = parse_image(id)?;
        let (templates, generations) = (self.parts.templates.clone(), self.parts.generations.clone());
        let remove = move || {
            let needed = generations.needed()?;
            let is_needed = |key: &str| needed.as_ref().is_none_or(|needed| needed.contains(key));
            templates.remove_base_image(id, is_needed, generations.folder()).map_err(AgentError::from)
        };
        blocking(remove).await
    }
}

fn image_wire(image: &BaseImage) -> wire::BaseImage {
    wire::BaseImage {
        image_id: image.id.to_string(),
        key: image.key.clone(),
        bytes: image.bytes,
        capsule_id: image.capsule.to_string(),
        template: image.template.clone(),
        languages: image.languages.clone(),
        created_at_ms: image.created_at_ms,
    }
}
