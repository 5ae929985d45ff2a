//! The commands, one file each, and the table of them all.

mod approve;
mod audit;
mod bench;
mod broadcast;
mod clear_hostname;
mod clear_tags;
mod clear_webhook;
mod completions;
mod config;
mod connect;
mod connections;
mod context;
mod daemon_run;
mod daemon_start;
mod daemon_status;
mod daemon_stop;
mod deregister;
mod disable_tasks;
mod disconnect;
mod enable_tasks;
mod find;
mod fleet;
mod handshake;
mod inbox;
mod info;
mod init;
mod listen;
mod lookup;
mod name_register;
mod network;
mod node_revoke;
mod peers;
mod pending;
mod ping;
mod plugins;
mod publish;
mod received;
mod recv;
mod reject;
mod reload;
mod resolve;
mod script;
mod secure_connect;
mod send;
mod send_file;
mod send_message;
mod set_hostname;
mod set_private;
mod set_public;
mod set_tags;
mod set_webhook;
mod subscribe;
mod task_accept;
mod task_decline;
mod task_execute;
mod task_list;
mod task_queue;
mod task_send_results;
mod task_submit;
mod trust;
mod untrust;

use crate::spec::Spec;

/// Every command, in the order of the overview.
pub(crate) static COMMANDS: &[Spec] = &[
    init::SPEC,
    config::SPEC,
    daemon_start::SPEC,
    daemon_stop::SPEC,
    daemon_status::SPEC,
    info::SPEC,
    peers::SPEC,
    connections::SPEC,
    disconnect::SPEC,
    find::SPEC,
    lookup::SPEC,
    set_hostname::SPEC,
    clear_hostname::SPEC,
    set_public::SPEC,
    set_private::SPEC,
    set_tags::SPEC,
    clear_tags::SPEC,
    deregister::SPEC,
    handshake::SPEC,
    pending::SPEC,
    approve::SPEC,
    reject::SPEC,
    trust::SPEC,
    untrust::SPEC,
    network::manage::CREATE,
    network::manage::UPDATE,
    network::manage::DELETE,
    network::manage::LIST,
    network::manage::RULES,
    network::member::JOIN,
    network::member::LEAVE,
    network::status::SPEC,
    network::member::MEMBERS,
    network::member::REMOVE,
    network::token::CREATE,
    network::token::LIST,
    network::token::REVOKE,
    network::invitation::INVITE,
    network::invitation::LIST,
    network::invitation::DECLINE,
    network::invitation::UNINVITE,
    broadcast::SPEC,
    audit::SPEC,
    node_revoke::SPEC,
    ping::SPEC,
    connect::SPEC,
    send::SPEC,
    recv::SPEC,
    listen::SPEC,
    send_file::SPEC,
    send_message::SPEC,
    received::SPEC,
    inbox::SPEC,
    plugins::SPEC,
    reload::SPEC,
    set_webhook::SPEC,
    clear_webhook::SPEC,
    subscribe::SPEC,
    publish::SPEC,
    secure_connect::SPEC,
    resolve::SPEC,
    name_register::SPEC,
    enable_tasks::SPEC,
    disable_tasks::SPEC,
    task_submit::SPEC,
    task_accept::SPEC,
    task_decline::SPEC,
    task_execute::SPEC,
    task_send_results::SPEC,
    task_list::SPEC,
    task_queue::SPEC,
    bench::SPEC,
    fleet::SPEC,
    script::CHECK,
    script::RUN,
    context::SPEC,
    completions::SPEC,
    daemon_run::SPEC,
];
