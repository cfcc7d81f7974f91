/*
 * The network of a namespace stands still: an nft table drops all packets but those of criu, which speaks to the peers
 * of connections that it takes apart or puts together.  The table belongs to a socket of this process (NFT_TABLE_F_OWNER,
 * Linux 5.12), so that the kernel removes it however the process ends.
 */
#include "launch.h"
#include "launch_netlink.h"

#include <arpa/inet.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <string.h>

#ifndef NFT_TABLE_F_OWNER
#define NFT_TABLE_F_OWNER 2
#endif
#define TABLE "serac"
#define NEW (NLM_F_CREATE | NLM_F_EXCL)
#define CRIU_MARK 0xC114u /* SOCCR_MARK in criu's sources */

static void text_put(struct request *request, uint16_t type, const char *text) {
    attribute_put(request, type, text, strlen(text) + 1);
}

static void number_put(struct request *request, uint16_t type, uint32_t number) {
    number = htonl(number);
    attribute_put(request, type, &number, sizeof number);
}

static void batch_put(struct request *request, uint16_t type) {
    struct nfgenmsg head = {.nfgen_family = AF_UNSPEC, .res_id = htons(NFNL_SUBSYS_NFTABLES)};
    message_begin(request, type, 0, &head, sizeof head);
}

static void table_message(struct request *request, uint16_t type, uint16_t flags) {
    struct nfgenmsg head = {.nfgen_family = NFPROTO_INET};
    message_begin(request, NFNL_SUBSYS_NFTABLES << 8 | type, flags, &head, sizeof head);
}

static void table_put(struct request *request) {
    table_message(request, NFT_MSG_NEWTABLE, NEW);
    text_put(request, NFTA_TABLE_NAME, TABLE);
    number_put(request, NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
}

/* A chain bears its hook's name. */
static void chain_put(struct request *request, const char *name, uint32_t hook) {
    table_message(request, NFT_MSG_NEWCHAIN, NEW);
    text_put(request, NFTA_CHAIN_TABLE, TABLE);
    text_put(request, NFTA_CHAIN_NAME, name);
    size_t nest = nest_begin(request, NFTA_CHAIN_HOOK);
    number_put(request, NFTA_HOOK_HOOKNUM, hook);
    number_put(request, NFTA_HOOK_PRIORITY, 0);
    nest_end(request, nest);
    number_put(request, NFTA_CHAIN_POLICY, NF_DROP);
    text_put(request, NFTA_CHAIN_TYPE, "filter");
}

struct expression {
    size_t element, data;
};

static struct expression expression_begin(struct request *request, const char *name) {
    struct expression begun = {.element = nest_begin(request, NFTA_LIST_ELEM)};
    text_put(request, NFTA_EXPR_NAME, name);
    begun.data = nest_begin(request, NFTA_EXPR_DATA);
    return begun;
}

static void expression_end(struct request *request, struct expression begun) {
    nest_end(request, begun.data);
    nest_end(request, begun.element);
}

static void mark_load(struct request *request) {
    struct expression meta = expression_begin(request, "meta");
    number_put(request, NFTA_META_DREG, NFT_REG_1);
    number_put(request, NFTA_META_KEY, NFT_META_MARK);
    expression_end(request, meta);
}

static void mark_compare(struct request *request) {
    const uint32_t mark = CRIU_MARK; /* in the host's order, as the packet bears it */
    struct expression compare = expression_begin(request, "cmp");
    number_put(request, NFTA_CMP_SREG, NFT_REG_1);
    number_put(request, NFTA_CMP_OP, NFT_CMP_EQ);
    size_t data = nest_begin(request, NFTA_CMP_DATA);
    attribute_put(request, NFTA_DATA_VALUE, &mark, sizeof mark);
    nest_end(request, data);
    expression_end(request, compare);
}

static void packet_accept(struct request *request) {
    struct expression immediate = expression_begin(request, "immediate");
    number_put(request, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
    size_t data = nest_begin(request, NFTA_IMMEDIATE_DATA);
    size_t verdict = nest_begin(request, NFTA_DATA_VERDICT);
    number_put(request, NFTA_VERDICT_CODE, NF_ACCEPT);
    nest_end(request, verdict);
    nest_end(request, data);
    expression_end(request, immediate);
}

static void rule_put(struct request *request, const char *chain, uint16_t flags) {
    table_message(request, NFT_MSG_NEWRULE, NEW | NLM_F_APPEND | flags);
    text_put(request, NFTA_RULE_TABLE, TABLE);
    text_put(request, NFTA_RULE_CHAIN, chain);
    size_t expressions = nest_begin(request, NFTA_RULE_EXPRESSIONS);
    mark_load(request);
    mark_compare(request);
    packet_accept(request);
    nest_end(request, expressions);
}

int network_lock(struct launch *launch) {
    struct request request = {0};
    if (!launch->spec.lock)
        return 0;
    batch_put(&request, NFNL_MSG_BATCH_BEGIN);
    table_put(&request);
    chain_put(&request, "input", NF_INET_LOCAL_IN);
    chain_put(&request, "output", NF_INET_LOCAL_OUT);
    rule_put(&request, "input", 0);
    rule_put(&request, "output", NLM_F_ACK);
    batch_put(&request, NFNL_MSG_BATCH_END);
    launch->lock = netlink_open(NETLINK_NETFILTER);
    return launch->lock < 0 || netlink_ask(launch->lock, &request) < 0 ? fail(launch, "nf_tables") : 0;
}

/* That the kernel would do it by itself when the socket is closed takes as long as its readers do (synchronize_rcu). */
int network_unlock(struct launch *launch) {
    struct request request = {0};
    if (!launch->spec.lock)
        return 0;
    batch_put(&request, NFNL_MSG_BATCH_BEGIN);
    table_message(&request, NFT_MSG_DELTABLE, NLM_F_ACK);
    text_put(&request, NFTA_TABLE_NAME, TABLE);
    batch_put(&request, NFNL_MSG_BATCH_END);
    return netlink_ask(launch->lock, &request) < 0 ? fail(launch, "nf_tables") : 0;
}
