//! Builds the parts, starts them, and watches that none ends. Holds no policy.

use crate::{
    capsule::{
        Record, clerk::Clerk, create::Creation, destroy::Destruction, events::Events, fork::Forking,
        lifecycle::Lifecycle, locate::Locator, lookup::Lookup, once::Once,
    },
    config::Config,
    error::PoolManagerError,
    fleet::Fleet,
    grpc::service::Service,
    host::{
        Host, Link, client::Agent, compare::Comparison, held::Holds, homes, reaper, restore::Restorer,
        stranger::Strangers, watch::Watch,
    },
    lease::Leases,
    metrics,
    owners::Owners,
    placement,
    pool::{
        Pools,
        demand::Demand,
        take::{LeaseLimits, Taker},
        warm::{self, Surroundings},
    },
    site::{Site, Sites},
    snapshot::{leftovers::Leftovers, shelf::Shelf},
    store::{Store, writer::Writer},
    template::{alias, catalogue::Catalogue, ensure::Ensure},
    usage::{sampler::Sampler, stats::Statistics},
};
use hearth_proto::id::CapsuleId;
use hearth_proto::wire::pool::pool_manager_server::PoolManagerServer;
use hearth_service::{rpc, shutdown::Shutdown, socket};
use std::{collections::HashSet, future::Future, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::UnixListener, sync::watch as level, task::JoinSet};
use tonic::{service::Routes, transport::Server};

/// The service; see [`PoolManager::start`].
#[derive(Debug)]
pub struct PoolManager;

/// A started pool-manager. Its tasks run on the shutdown's tracker; dropping this value stops nothing.
#[derive(Debug)]
pub struct Running {
    socket: PathBuf,
    ended: level::Receiver<Option<&'static str>>,
    clerk: Clerk,
    shutdown: Shutdown,
}

impl Running {
    /// Users' capsules that should be on a host. None when the shutdown has begun: nobody knows any more.
    pub async fn users(&self) -> Option<HashSet<CapsuleId>> {
        self.clerk.users().await.ok()
    }

    /// The endpoint it serves on, `unix:/path`.
    pub fn endpoint(&self) -> String {
        socket::endpoint(&self.socket)
    }

    /// Resolves when the shutdown has begun, or with an error as soon as a part ended that must not: nothing works
    /// right without it, so the process should end. Cancel safe.
    ///
    /// # Errors
    /// The part that ended.
    pub async fn ended(&mut self) -> Result<(), PoolManagerError> {
        let stop = self.shutdown.token();
        tokio::select! {
            // Parts end because of a shutdown too; that is no failure.
            biased;
            () = stop.cancelled() => Ok(()),
            ended = self.ended.wait_for(Option::is_some) => match ended.ok().and_then(|part| *part) {
                Some(part) => Err(PoolManagerError::PartEnded(part)),
                None => Ok(()),
            },
        }
    }
}

impl PoolManager {
    /// Waits for the database, binds the socket and starts serving; then returns. The host's agent may come up later.
    /// All tasks are spawned on `shutdown`, and end when it begins: parked capsules stay on their host for the next
    /// start, changes of state are written.
    ///
    /// # Errors
    /// When the settings are wrong, the database does not come up in time, or the socket cannot be bound.
    pub async fn start(config: Config, shutdown: Shutdown) -> Result<Running, PoolManagerError> {
        config.check()?;
        metrics::describe();
        let agents = config
            .agent_endpoints()
            .into_iter()
            .map(|endpoint| Ok(NamedAgent { agent: Agent::new(&endpoint)?, endpoint: endpoint.into() }))
            .collect::<Result<Vec<_>, PoolManagerError>>()?;
        let wait = Duration::from_secs(config.database_wait_sec);
        let store = shutdown
            .token()
            .run_until_cancelled(Store::connect(&config.database_url, wait))
            .await
            .ok_or(PoolManagerError::Stopped)??;
        let load = async {
            store.discard_unfinished().await?;
            store.active().await
        };
        let records = load.await.map_err(|error| PoolManagerError::Load(Box::new(error)))?;
        let path = config.socket();
        let listener =
            socket::bind(&path).map_err(|source| PoolManagerError::Socket { path: path.clone(), source })?;

        let mut parts = Parts { tasks: JoinSet::new() };
        let base = parts.base(store, records, &shutdown);
        let clerk = base.clerk.clone();
        let service = parts.build(&config, agents, base);
        parts.start("server", serve(listener, service, shutdown.clone()));
        let ended = parts.supervise(&shutdown);
        tracing::info!(socket = %path.display(), "pool-manager serves");
        Ok(Running { socket: path, ended, clerk, shutdown })
    }
}

async fn serve(listener: UnixListener, service: Service, shutdown: Shutdown) {
    let service = PoolManagerServer::new(service)
        .max_decoding_message_size(socket::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(socket::MESSAGE_BYTES_MAX);
    let served = rpc::serve(Server::builder(), Routes::new(service), listener, shutdown.token()).await;
    if let Err(error) = served {
        tracing::error!(%error, "the server ended");
    }
}

/// The tasks that must run as long as the service. Each returns its name.
struct Parts {
    tasks: JoinSet<&'static str>,
}

impl Parts {
    fn start(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// What everything else stands on.
    fn base(&mut self, store: Store, records: Vec<Record>, shutdown: &Shutdown) -> Base {
        let (writer, task) = Writer::new(store.clone(), shutdown.clone());
        self.start("writer", task.run());
        let events = Events::new();
        let (clerk, task) = Clerk::new(records, writer.clone(), events.clone(), shutdown.clone());
        self.start("clerk", task.run());
        Base { store, writer, clerk, events, shutdown: shutdown.clone() }
    }

    /// Builds the parts from left to right, and starts their tasks.
    fn build(&mut self, config: &Config, agents: Vec<NamedAgent>, base: Base) -> Service {
        let sites: Vec<(Site, SiteEnds)> = (0..)
            .zip(&agents)
            .map(|(index, agent)| {
                let target = placement::share(config.target, agents.len(), index);
                self.site(config, agent, target, &base)
            })
            .collect();
        let all = Sites::new(sites.iter().map(|(site, _)| site.clone()).collect());
        for (site, ends) in sites {
            self.listen(config, site, ends, &base);
        }
        let sampler =
            Sampler { clerk: base.clerk.clone(), store: base.store.clone(), shutdown: base.shutdown.clone() };
        self.start("sampler", sampler.run());
        let leftovers = Leftovers::default();
        let task = leftovers.clone().run(all.clone(), base.store.clone(), base.shutdown.clone());
        self.start("leftovers", task);
        self.start("homes", homes::run(all.clone(), base.clerk.clone(), base.shutdown.clone()));
        service(config, all, leftovers, base)
    }

    /// What is kept for one host, and the ends of its channels that its tasks hold.
    fn site(&mut self, config: &Config, agent: &NamedAgent, target: usize, base: &Base) -> (Site, SiteEnds) {
        let wanted = alias::canonical(&config.template).to_owned();
        let away = Link::Away { reason: "its agent was not reached yet".to_owned(), last: None };
        let (link, linked) = level::channel(away);
        let (catalogue, catalogued) = level::channel(Arc::new(Catalogue::new(&wanted)));
        let NamedAgent { endpoint, agent } = agent.clone();
        let shutdown = &base.shutdown;
        let (holds, queue) = Holds::new(shutdown.token());
        self.start("reaper", reaper::run(queue, holds.clone(), agent.clone(), shutdown.clone()));
        let (leases, task) = Leases::new(shutdown.clone());
        self.start("leases", task.run());
        let restorer = Restorer { agent: agent.clone(), holds: holds.clone() };
        let demand = Demand::new(restorer.clone(), config.restores(), config.take_wait(), shutdown.clone());
        let around = Surroundings {
            link: linked.clone(),
            catalogue: catalogued.clone(),
            demand: demand.level(),
            shutdown: shutdown.clone(),
        };
        let (pool, task) = warm::Keeper::new(&wanted, target, config.refills, restorer, around);
        self.start("pool", task.run());
        let host = Host { agent, endpoint, link: linked };
        let pools = Pools::new([(wanted, pool)]);
        let site = Site { host, catalogue: catalogued, pools, demand, leases, holds };
        (site, SiteEnds { link, catalogue })
    }

    /// The tasks that listen to one host.
    fn listen(&mut self, config: &Config, site: Site, ends: SiteEnds, base: &Base) {
        let owners =
            Owners { pools: site.pools, leases: site.leases, clerk: base.clerk.clone(), holds: site.holds };
        let ensure = Ensure {
            wanted: alias::canonical(&config.template).to_owned(),
            agent: site.host.agent.clone(),
            link: site.host.link.clone(),
            catalogue: ends.catalogue,
            writer: base.writer.clone(),
            shutdown: base.shutdown.clone(),
        };
        self.start("templates", ensure.run());
        let comparison = Comparison {
            agent: site.host.agent,
            owners,
            store: base.store.clone(),
            lease_max: config.lease_max(),
            strangers: Strangers::default(),
        };
        let watch = Watch {
            endpoint: site.host.endpoint,
            comparison,
            link: ends.link,
            writer: base.writer.clone(),
            shutdown: base.shutdown.clone(),
        };
        self.start("watch", watch.run());
    }

    /// Ends the parts' common life: the first that ends without a shutdown is told to whoever runs this service.
    fn supervise(mut self, shutdown: &Shutdown) -> level::Receiver<Option<&'static str>> {
        let (ended, receiver) = level::channel(None);
        let stop = shutdown.token();
        shutdown.tasks().spawn(async move {
            while let Some(part) = self.tasks.join_next().await {
                if stop.is_cancelled() {
                    continue;
                }
                let name = part.unwrap_or_else(|panic| {
                    tracing::error!(%panic, "a part panicked");
                    "part that panicked"
                });
                tracing::error!(part = name, "a part ended that must not");
                ended.send_replace(Some(name));
            }
        });
        receiver
    }
}

/// An agent and its endpoint.
#[derive(Debug, Clone)]
struct NamedAgent {
    endpoint: Arc<str>,
    agent: Agent,
}

/// What all parts stand on.
struct Base {
    store: Store,
    writer: Writer,
    clerk: Clerk,
    events: Events,
    shutdown: Shutdown,
}

/// The ends of a site's channels that its tasks hold.
struct SiteEnds {
    link: level::Sender<Link>,
    catalogue: level::Sender<Arc<Catalogue>>,
}

fn service(config: &Config, sites: Sites, leftovers: Leftovers, base: Base) -> Service {
    let Base { store, writer, clerk, events, shutdown } = base;
    let limits = LeaseLimits { default: config.lease_default(), most: config.lease_max() };
    let taker = Taker { sites: sites.clone(), clerk: clerk.clone(), limits };
    let once = Once::default();
    let lifecycle = Lifecycle {
        sites: sites.clone(),
        store: store.clone(),
        clerk: clerk.clone(),
        shutdown: shutdown.clone(),
    };
    let lookup = Lookup { store: store.clone(), clerk: clerk.clone() };
    Service {
        creation: Creation {
            taker: taker.clone(),
            store: store.clone(),
            clerk: clerk.clone(),
            writer: writer.clone(),
            once: once.clone(),
            shutdown: shutdown.clone(),
        },
        destruction: Destruction {
            sites: sites.clone(),
            store: store.clone(),
            clerk: clerk.clone(),
            shutdown: shutdown.clone(),
        },
        locator: Locator { lookup: lookup.clone(), lifecycle: lifecycle.clone() },
        forking: Forking { lifecycle: lifecycle.clone(), writer, once: once.clone() },
        shelf: Shelf {
            sites: sites.clone(),
            store: store.clone(),
            lifecycle: lifecycle.clone(),
            events: events.clone(),
            once,
            leftovers,
        },
        statistics: Statistics { clerk: clerk.clone(), store: store.clone() },
        fleet: Fleet { sites: sites.clone(), store, clerk },
        sites,
        taker,
        lookup,
        lifecycle,
        events,
        shutdown,
    }
}
