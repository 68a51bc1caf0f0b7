// An OIDC provider on loopback, told what to do by lines of JSON on standard input:
//   {"people": {"ada": {"name": "Ada", "groups": ["ops"]}}}   who signs in with which claims
//   {"rotate": "kid"}                                         sign with a new key of that id
// Each line is answered by one line; the first line printed says where it listens.
import { generateKeyPairSync } from 'node:crypto'
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'

import Provider from 'oidc-provider'

const { clients, claimsInIdToken } = JSON.parse(process.argv[2])
const people = new Map()
const keys = []
let handle

function key(kid, type, alg, options) {
  const { privateKey } = generateKeyPairSync(type, options)
  return { ...privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' }
}

function provide(issuer, kid) {
  // The new key first: that is the one that signs; the old ones stay published.
  keys.unshift(
    key(`${kid}-rsa`, 'rsa', 'RS256', { modulusLength: 2048 }),
    key(`${kid}-ec`, 'ec', 'ES256', { namedCurve: 'P-256' }),
    key(`${kid}-ed`, 'ed25519', 'EdDSA', {}),
  )
  const provider = new Provider(issuer, {
    clients,
    jwks: { keys },
    claims: { openid: ['sub'], profile: ['name'], email: ['email', 'email_verified'], groups: ['groups'] },
    conformIdTokenClaims: !claimsInIdToken,
    cookies: { keys: ['only a test'] },
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'ES256', 'EdDSA'] },
    findAccount: (_, id) => people.has(id)
      ? { accountId: id, claims: () => ({ sub: id, ...people.get(id) }) }
      : undefined,
    pkce: { methods: ['S256'], required: () => true },
  })
  handle = provider.callback()
}

const server = createServer((request, response) => handle(request, response))
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`
  provide(issuer, 'first')
  console.log(issuer)
  createInterface({ input: process.stdin }).on('line', (line) => {
    const told = JSON.parse(line)
    for (const [id, claims] of Object.entries(told.people ?? {})) people.set(id, claims)
    if (told.rotate) provide(issuer, told.rotate)
    console.log('done')
  }).on('close', () => process.exit(0))
})
