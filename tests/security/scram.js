// MQTT.js proves a password with SCRAM-SHA-256 and the crypto of Node, neither of which is ours: `scram.js PORT USER PASSWORD`.
const crypto = require('crypto')
const mqtt = require('mqtt')

const [port, user, password] = process.argv.slice(2)
const method = 'SCRAM-SHA-256'
const hmac = (key, text) => crypto.createHmac('sha256', key).update(text).digest()
const bare = `n=${user},r=${crypto.randomBytes(18).toString('base64')}`
let expected

const client = mqtt.connect({
  host: '127.0.0.1',
  port: Number(port),
  protocolVersion: 5,
  reconnectPeriod: 0,
  properties: { authenticationMethod: method, authenticationData: Buffer.from(`n,,${bare}`) }
})

client.handleAuth = (packet, done) => {
  const challenge = packet.properties.authenticationData.toString()
  const said = Object.fromEntries(challenge.split(',').map((part) => [part[0], part.slice(2)]))
  const salted = crypto.pbkdf2Sync(password, Buffer.from(said.s, 'base64'), Number(said.i), 32, 'sha256')
  const key = hmac(salted, 'Client Key')
  const unproven = `c=${Buffer.from('n,,').toString('base64')},r=${said.r}`
  const whole = `${bare},${challenge},${unproven}`
  const signature = hmac(crypto.createHash('sha256').update(key).digest(), whole)
  const proof = Buffer.from(key.map((byte, at) => byte ^ signature[at])).toString('base64')
  expected = `v=${hmac(hmac(salted, 'Server Key'), whole).toString('base64')}`
  const properties = { authenticationMethod: method, authenticationData: Buffer.from(`${unproven},p=${proof}`) }
  done(null, { cmd: 'auth', reasonCode: 24, properties })
}

client.on('connect', (connack) => {
  const proven = connack.properties.authenticationData.toString() === expected
  console.log(proven ? 'ok both have proven themselves' : 'the server has not proven itself')
  client.end()
})
client.on('error', (error) => {
  console.log(`refused: ${error.message}`)
  client.end(true)
})
