//! The templates there are, as a value that is replaced whole. Pure.

use super::{
    Template, alias,
    fit::{self, Size},
};
use crate::error::Refused;

/// Templates by name, and how far the one to keep warm is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Catalogue {
    /// The template that is ensured at start.
    wanted: String,
    /// What its build said last.
    progress: String,
    templates: Vec<Template>,
}

impl Catalogue {
    /// Nothing yet.
    pub(crate) fn new(wanted: &str) -> Self {
        Self { wanted: wanted.to_owned(), progress: "waiting for the host".to_owned(), templates: Vec::new() }
    }

    /// The same with another word on the build.
    pub(crate) fn progressed(&self, line: &str) -> Self {
        Self { progress: line.to_owned(), ..self.clone() }
    }

    /// The same with what the host has now. A template with the name and size of a known one replaces it.
    pub(crate) fn with(&self, templates: impl IntoIterator<Item = Template>) -> Self {
        let mut next = self.clone();
        for template in templates {
            let same = |known: &Template| {
                (&known.name, known.vcpus, known.memory_mb)
                    == (&template.name, template.vcpus, template.memory_mb)
            };
            match next.templates.iter_mut().find(|known| same(known)) {
                Some(known) => *known = template,
                None => next.templates.push(template),
            }
        }
        next
    }

    /// All of them.
    pub(crate) fn templates(&self) -> &[Template] {
        &self.templates
    }

    /// A template by its own name, in the size that is had without a wish.
    pub(crate) fn find(&self, name: &str) -> Option<&Template> {
        self.templates.iter().find(|template| template.name == name)
    }

    /// Why the wanted template cannot be used; `None` when it can.
    pub(crate) fn unready(&self) -> Option<String> {
        match self.find(&self.wanted) {
            Some(_) => None,
            None => Some(format!("building template {}: {}", self.wanted, self.progress)),
        }
    }

    /// The variant that a request with this template name, or alias, and size gets.
    pub(crate) fn choose(&self, name: &str, size: Size) -> Result<&Template, Refused> {
        let name = alias::canonical(name);
        let variants: Vec<&Template> =
            self.templates.iter().filter(|template| template.name == name).collect();
        let Some(first) = variants.first() else { return Err(self.missing(name)) };
        if size == Size::default() {
            return Ok(first);
        }
        fit::fit(&variants, size).map_err(|unfit| Refused::Invalid(unfit.to_string()))
    }

    fn missing(&self, name: &str) -> Refused {
        match self.unready() {
            Some(detail) if name == self.wanted => Refused::Away(detail),
            _ => {
                let mut names: Vec<&str> =
                    self.templates.iter().map(|template| template.name.as_str()).collect();
                names.push(&self.wanted);
                names.sort_unstable();
                names.dedup();
                Refused::NotFound(format!("template `{name}` not found; there are: {}", names.join(", ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(memory_mb: u64) -> Template {
        Template {
            name: "code".to_owned(),
            snapshot_key: "k1".to_owned(),
            vcpus: 1,
            memory_mb,
            languages: vec!["python".to_owned()],
            size_bytes: 0,
            created_at_ms: 0,
        }
    }

    #[test]
    fn until_the_build_is_done_requests_hear_how_far_it_is() {
        let catalogue = Catalogue::new("code").progressed("boot the guest");
        let detail = "building template code: boot the guest";
        assert_eq!(catalogue.unready().as_deref(), Some(detail));
        assert_eq!(catalogue.choose("", Size::default()), Err(Refused::Away(detail.to_owned())));
    }

    #[test]
    fn an_unknown_template_is_answered_with_the_known_ones() {
        let catalogue = Catalogue::new("code").with([code(512)]);
        assert_eq!(
            catalogue.choose("rust", Size::default()),
            Err(Refused::NotFound("template `rust` not found; there are: code".to_owned()))
        );
    }

    #[test]
    fn aliases_and_sizes_choose_a_variant() {
        let catalogue = Catalogue::new("code").with([code(512), code(1024)]);
        let wish = Size { vcpus: 0, memory_mb: 600 };
        assert_eq!(catalogue.choose("minimal", wish).unwrap().memory_mb, 1024);
        assert_eq!(catalogue.choose("", Size::default()).unwrap().memory_mb, 512);
    }

    #[test]
    fn a_rebuilt_template_replaces_the_older_one() {
        let newer = Template { snapshot_key: "k2".to_owned(), ..code(512) };
        let catalogue = Catalogue::new("code").with([code(512)]).with([newer.clone()]);
        assert_eq!(catalogue.templates(), [newer]);
    }

    #[test]
    fn a_language_that_is_not_there_is_named() {
        let refused = code(512).speaks("ruby").unwrap_err();
        assert_eq!(refused.to_string(), "language `ruby` is not in template `code`; there are: python");
        assert_eq!(code(512).speaks(""), Ok(()));
    }
}
