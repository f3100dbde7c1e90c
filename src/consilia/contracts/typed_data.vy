# pragma version 0.4.3
# pragma evm-version london
"""
@title EIP-712: what a member signs with its ledger account
@notice Functions without state; a contract imports them and passes the hash of its own struct.
"""

# The order n of secp256k1. For each signature (r, s) a stranger can compute a second one, (r, n - s); only the
# lower is accepted, so that nobody can show "another" signature of the same words.
ORDER: constant(uint256) = 115792089237316195423570985008687907852837564279074904382605163141518161494337

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)


@internal
@view
def _digest(name: String[64], struct_hash: bytes32) -> bytes32:
    # chain.id and self are read on each call: a signature is worth nothing on another chain or contract.
    domain: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, keccak256(name), keccak256("1"), chain.id, self))
    return keccak256(concat(x"1901", domain, struct_hash))


@internal
@pure
def _signer(digest: bytes32, signature: Bytes[65]) -> address:
    """
    @notice The account that made a signature (r, s, v), or the zero address if it is not a canonical one.
    """
    if len(signature) != 65:
        return empty(address)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    if s > ORDER // 2 or (v != 27 and v != 28):
        return empty(address)
    return ecrecover(digest, v, extract32(signature, 0, output_type=uint256), s)
