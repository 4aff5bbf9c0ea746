/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Under BCC, in place of libbpf's: BCC has declared bpf_htons() and its relatives already. */
